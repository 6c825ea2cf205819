#!/bin/sh
# debian-root.sh ROOT SUITE PACKAGE... : unpacks Debian packages of SUITE, and all they depend on, into
# ROOT, beside the system: nothing is installed or configured. NAME:arch asks for another architecture;
# +NAME is unpacked without its dependencies. A second call with the same words does nothing.
set -eu
root=$1 suite=$2
shift 2
stamp="$suite $*"
[ "$(cat "$root.stamp" 2>/dev/null)" = "$stamp" ] && exit 0
rm -rf "$root" "$root.stamp"
state=$root.apt
mkdir -p "$root" "$state/lists/partial" "$state/debs/partial"
state=$(cd "$state" && pwd)

# The mirror is the one this machine's apt already uses.
mirrors() {
    apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' 'Origin: Debian' \
        | awk '$2 !~ /-/ { print $1; exit }'
}
mirror=$(mirrors)
[ -n "$mirror" ] || { apt-get update >&2 && mirror=$(mirrors); }
[ -n "$mirror" ] || { echo "debian-root: apt knows no Debian mirror here" >&2; exit 1; }
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$state/sources"
: >"$state/status" # nothing counts as installed

apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$state/sources" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::Etc::preferencesparts=/dev/null -o Dir::State="$state" -o Dir::State::lists="$state/lists" \
        -o Dir::State::status="$state/status" -o Dir::Cache="$state" -o Dir::Cache::archives="$state/debs" \
        -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 -o APT::Install-Recommends=false \
        -o APT::Sandbox::User=root "$@"
}
with= alone=
for package; do
    case $package in
        +*) alone="$alone ${package#+}" ;;
        *) with="$with $package" ;;
    esac
done
apt update
# base-files holds the links /bin, /lib and so on, which must be there before the rest.
# shellcheck disable=SC2086
apt install --download-only -y base-files $with
# shellcheck disable=SC2086
[ -z "$alone" ] || (cd "$state/debs" && apt download $alone)
dpkg -x "$state"/debs/base-files_*.deb "$root"
for deb in "$state"/debs/*.deb; do
    case $deb in
        */base-files_*) ;;
        *) dpkg -x "$deb" "$root" ;;
    esac
done
rm -rf "$state"
echo "$stamp" >"$root.stamp"
