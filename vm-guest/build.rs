//! Links the image: no C start files, no dynamic loader, our own linker script.

fn main() {
    println!("cargo:rerun-if-changed=image.ld");
    println!("cargo:rerun-if-changed=build.rs");
    let script = format!(
        "{}/image.ld",
        std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")
    );
    let target_os = std::env::var("CARGO_CFG_TARGET_OS").expect("cargo sets it");
    let mut arguments = vec![format!("-T{script}")];
    if target_os == "none" {
        // rust-lld is called directly.
        arguments.extend(["--build-id=none", "--no-pie"].map(String::from));
    } else {
        // The host's target: a C compiler is called, and is told to forget what
        // makes a program of the host.
        arguments
            .extend(["-nostartfiles", "-nodefaultlibs", "-static", "-no-pie"].map(String::from));
        arguments.extend(["-Wl,--build-id=none", "-Wl,-z,norelro"].map(String::from));
    }
    for argument in arguments {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
