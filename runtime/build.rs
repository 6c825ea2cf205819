//! Compiles the GPU kernels where a feature asks for them: for cards (`cuda`), or for the processor, as the
//! emulated card that tests use (`gpu-emulator`).

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;

fn main() {
    println!("cargo:rerun-if-changed=src/gpu/kernels");
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    cuda::build();
}
