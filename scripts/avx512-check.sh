#!/bin/sh
# avx512-check.sh [CACHE [PROGRAM [ARGUMENT...]]] : runs an x86-64 Linux program on an emulated processor
# that has AVX-512, whatever this machine's own has, and exits as the program did. The emulator is Bochs:
# it boots a Debian kernel whose first process starts the program, and the program's output is the
# serial line's. Emulator, kernel and boot loader are Debian packages, unpacked into CACHE (300 MB; first
# run: about 100 MB to fetch). Without PROGRAM: the kernels' unit tests, on each processor.
#
# CPUS="tigerlake arrow_lake" names the processors, one run each: the first has AVX-512 with VNNI, the
# second AVX-VNNI and no AVX-512. corei7_skylake_x has AVX-512 without VNNI. Starting takes about 20 s
# of this machine's time, then 10^8 instructions take about 1 s. The clock inside is not real: time nothing.
# MEM (megabytes, default 1024) sets the memory, LIMIT (seconds, default 3000) ends a run that hangs.
set -eu
cache=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/drafthorse-avx512}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)
[ $# -eq 0 ] || shift
if [ $# -gt 0 ]; then
    program=$(realpath "$1")
    shift
    set -- "$program" "$@"
fi
cd "$(dirname "$0")/.."
if [ $# -eq 0 ]; then
    program=$(cargo test --release -p drafthorse-runtime --lib --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
    set -- "$program" --test-threads=1 kernels::
fi

# The later Bochs 3.1 faults in a 64-bit division while the kernel starts: hence this suite by name.
sh scripts/debian-root.sh "$cache/root" "${SUITE:-trixie}" bochs bochs-term bochsbios vgabios isolinux \
    syslinux-common genisoimage cpio busybox-static linux-image-cloud-amd64
root=$cache/root
lib=$root/usr/lib/x86_64-linux-gnu
in_root() { # a program of the root, with the root's libraries
    name=$1
    shift
    "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$lib" "$root/usr/bin/$name" "$@"
}
work=$(mktemp -d "$cache/run.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# The first file system: busybox, the program, the libraries it asks for, and an init that runs it.
fs=$work/fs
mkdir -p "$fs/bin" "$fs/proc" "$fs/sys" "$fs/dev" "$fs/tmp" "$work/iso"
cp "$root/usr/bin/busybox" "$fs/bin/busybox"
ln -s busybox "$fs/bin/sh"
strip -o "$fs/bin/program" "$1" 2>/dev/null || cp "$1" "$fs/bin/program"
shift
ldd "$fs/bin/program" 2>/dev/null | grep -o '/[^ ]*' | while read -r so; do
    [ "$so" = "$fs/bin/program:" ] || { mkdir -p "$fs${so%/*}" && cp -L "$so" "$fs$so"; }
done
{
    echo '#!/bin/sh'
    echo 'b=/bin/busybox; $b mount -t proc p /proc; $b mount -t sysfs s /sys; $b mount -t devtmpfs d /dev'
    echo '$b mount -t tmpfs t /tmp; export RUST_BACKTRACE=1; cd /tmp; echo; echo @@start'
    printf /bin/program
    for argument; do
        printf " '%s'" "$(printf %s "$argument" | sed "s/'/'\\\\''/g")"
    done
    echo ' 2>&1; echo "@@end $?"; $b sleep 1; $b poweroff -f'
} >"$fs/init"
chmod +x "$fs/init"
(cd "$fs" && find . | in_root cpio -o -H newc --quiet) >"$work/iso/initrd"
cp "$root"/boot/vmlinuz-* "$work/iso/vmlinuz"
cp "$root/usr/lib/ISOLINUX/isolinux.bin" "$root/usr/lib/syslinux/modules/bios/ldlinux.c32" "$work/iso/"
cat >"$work/iso/isolinux.cfg" <<X
default l
prompt 0
label l
kernel /vmlinuz
append initrd=/initrd console=ttyS0 quiet loglevel=0 nokaslr mitigations=off panic=-1 no_timer_check tsc=reliable random.trust_cpu=on lsm= audit=0 cryptomgr.notests nosmp ${KARGS:-}
X
in_root genisoimage -quiet -o "$work/cd.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
    -boot-info-table "$work/iso"

failed=0
for cpu in ${CPUS:-tigerlake arrow_lake}; do
    echo "== $cpu"
    cat >"$work/bochsrc" <<X
plugin_ctrl: speaker=0, gameport=0, es1370=0
display_library: term
cpu: model=$cpu, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=${MEM:-1024}, host=${MEM:-1024}
romimage: file=$root/usr/share/bochs/BIOS-bochs-latest, options=fastboot
vgaromimage: file=$root/usr/share/vgabios/vgabios.bin
ata0-master: type=cdrom, path=$work/cd.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$work/serial
log: $work/log
panic: action=fatal
clock: sync=none
X
    : >"$work/serial"
    LTDL_LIBRARY_PATH=$lib/bochs/plugins BXSHARE=$root/usr/share/bochs TERM=xterm timeout "${LIMIT:-3000}" \
        "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$lib" "$root/usr/bin/bochs-bin" \
        -q -f "$work/bochsrc" </dev/null >"$work/out" 2>&1 || true # it never ends with 0
    tr -d '\r' <"$work/serial" | sed -n '/^@@start/,/^@@end/p' | grep -v '^@@' || true
    code=$(tr -d '\r' <"$work/serial" | sed -n 's/^@@end //p')
    if [ "${code:-none}" != 0 ]; then
        echo "$cpu: the program ended with ${code:-no status: the last of the serial line and of the log follow}" >&2
        [ -n "$code" ] || tail -n 20 "$work/serial" "$work/log" >&2
        failed=1
    fi
done
exit $failed
