//! Compiles the GPU kernels where a feature asks for them: for cards (`cuda`), or for the processor, as the
//! emulated card that tests use (`gpu-emulator`).

fn main() {
    println!("cargo:rerun-if-changed=src/gpu/kernels");
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "gpu-emulator")]
    emulator();
}

/// The kernels as C++. Products are fused where the source says so and nowhere else.
#[cfg(feature = "gpu-emulator")]
fn emulator() {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").file("src/gpu/kernels/emulator.cpp").opt_level(2);
    build.flag("-ffp-contract=off").flag("-fno-strict-aliasing").flag("-fno-math-errno");
    // Addresses that a card would not take are noticed (`emulator.cpp` hears of them).
    build.flag("-fsanitize=alignment").flag("-fsanitize-recover=alignment");
    // A jump from stack to stack is what fortified functions take for an error.
    build.flag("-U_FORTIFY_SOURCE");
    if host_has_fma() {
        build.flag("-mfma");
    }
    build.compile("drafthorse_emulator");
}

/// Whether what is built runs here, on a processor that fuses products in one instruction; elsewhere the C library
/// does. The driver checks again where it runs.
#[cfg(feature = "gpu-emulator")]
fn host_has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    if std::env::var("HOST") == std::env::var("TARGET") {
        return std::is_x86_feature_detected!("fma");
    }
    false
}
