//! Compiles the GPU kernels for NVIDIA cards: finds nvcc, makes one file of machine code for several
//! generations, and says in Rust what it was built for. Knows nothing of what the kernels compute.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Generations that machine code is made for unless the environment names others: Turing, Ampere (server, laptop),
/// Ada, Hopper, Blackwell.
const ARCHS: &str = "75 80 86 89 90 120";
const SOURCE: &str = "src/gpu/kernels/kernels.cu";
const HELP: &str = "the feature `cuda` needs NVIDIA's compiler: `sh scripts/cuda-build.sh` fetches one and builds, or \
                    set NVCC to the program, or CUDA_HOME to the toolkit's folder, or put nvcc on the PATH";

/// Compiles, or ends the build with one line that says what to do.
pub fn build() {
    if let Err(reason) = try_build() {
        eprintln!("error: {reason}");
        std::process::exit(1);
    }
}

fn try_build() -> Result<(), String> {
    println!("cargo:rerun-if-changed=build/cuda.rs");
    for name in ["NVCC", "CUDA_HOME", "NVCC_CCBIN", "DRAFTHORSE_CUDA_ARCHS"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let nvcc = find_nvcc()?;
    println!("cargo:rerun-if-changed={}", nvcc.display());
    let release = release(&nvcc)?;
    let archs = archs()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    compile(&nvcc, &archs, &out.join("kernels.fatbin"))?;
    // A driver runs machine code of every toolkit of its major version, or of an older one.
    let driver = release / 1000 * 1000;
    let facts = format!(
        "/// The oldest driver that runs these kernels, as `cuDriverGetVersion` counts: 1000 * major + 10 * minor.\n\
         const DRIVER_NEEDED: i32 = {driver};\n\
         /// Compute capabilities there is machine code for, and PTX for the last.\n\
         const ARCHS: &str = {:?};\n",
        archs.join(" ")
    );
    fs::write(out.join("kernels.rs"), facts).map_err(|e| format!("cannot write to {}: {e}", out.display()))
}

/// The environment's `NVCC`, else that of `CUDA_HOME`, else the first on the `PATH`.
fn find_nvcc() -> Result<PathBuf, String> {
    if let Some(named) = env::var_os("NVCC") {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!("NVCC={}: no such file", named.display()))
        };
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = home.into_iter().chain(env::split_paths(&path));
    folders.map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file()).ok_or_else(|| HELP.to_owned())
}

/// The toolkit's version, counted as the driver counts: 13.0 is 13000.
fn release(nvcc: &Path) -> Result<u32, String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .output()
        .map_err(|e| format!("cannot run {}: {e}; {HELP}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = |part: Option<&str>| part.and_then(|part| part.trim().parse::<u32>().ok());
    text.split("release ")
        .nth(1)
        .and_then(|rest| rest.split(',').next())
        .and_then(|version| {
            let mut parts = version.split('.');
            Some(1000 * number(parts.next())? + 10 * number(parts.next())?)
        })
        .ok_or_else(|| format!("{} --version names no release: {}", nvcc.display(), text.trim()))
}

fn archs() -> Result<Vec<String>, String> {
    let list = env::var("DRAFTHORSE_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let archs: Vec<String> = list.split([' ', ',']).filter(|a| !a.is_empty()).map(str::to_owned).collect();
    let valid = |a: &String| a.trim_end_matches(['a', 'f']).parse::<u32>().is_ok_and(|number| number >= 75);
    match archs.iter().find(|a| !valid(a)) {
        _ if archs.is_empty() => Err("DRAFTHORSE_CUDA_ARCHS names no compute capability".to_owned()),
        Some(wrong) => {
            Err(format!("DRAFTHORSE_CUDA_ARCHS: {wrong} is no compute capability from 75 on (7.5 is 75)"))
        }
        None => Ok(archs),
    }
}

/// One file with machine code for every capability, and PTX for the last, from which drivers make code for later
/// cards. No product and sum are fused, so that every card computes the bits of the processor's kernels.
fn compile(nvcc: &Path, archs: &[String], to: &Path) -> Result<(), String> {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "--fmad=false", "-O3", "--std=c++17", "-Xfatbin", "-compress-all"]);
    command.args(["--threads", &env::var("NUM_JOBS").unwrap_or_else(|_| "1".to_owned())]);
    for (i, arch) in archs.iter().enumerate() {
        let ptx = if i + 1 == archs.len() { format!(",compute_{arch}") } else { String::new() };
        command.arg("-gencode").arg(format!("arch=compute_{arch},code=[sm_{arch}{ptx}]"));
    }
    command.arg("-o").arg(to).arg(SOURCE);
    let output = command.output().map_err(|e| format!("cannot run {}: {e}; {HELP}", nvcc.display()))?;
    if output.status.success() {
        return check_header(to);
    }
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    Err(format!("{command:?} failed ({}):\n{said}", output.status))
}

/// Drivers read past the end of what is no such file.
fn check_header(file: &Path) -> Result<(), String> {
    let bytes = fs::read(file).map_err(|e| format!("nvcc made no {}: {e}", file.display()))?;
    let magic = bytes.len() >= 16 && bytes.starts_with(&0xba55_ed50_u32.to_le_bytes());
    if magic { Ok(()) } else { Err(format!("nvcc made something else than kernels of {}", file.display())) }
}
