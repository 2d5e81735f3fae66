//! NVRTC as this crate drives it: machine code for every architecture, kept on disk, and what is said when something is wrong.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "a test fails and reports this way")]

use duquant::kernels::cuda::{Arch, Compiler, CubinCache, Error, Kernel, kernels};
use std::path::Path;

/// NVRTC, or none with a word why; in CI that is a failure.
fn compiler(test: &str) -> Option<&'static Compiler> {
    match Compiler::open() {
        Ok(compiler) => Some(compiler),
        Err(error) => {
            assert!(std::env::var_os("CI").is_none(), "{test}: {error}");
            println!("skipped {test}: {error}");
            None
        }
    }
}

fn rms_norm() -> Kernel {
    kernels().into_iter().find(|kernel| kernel.entry == "rms_norm").unwrap()
}

fn contains(image: &[u8], text: &str) -> bool {
    image.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_kernel_compiles_for_every_architecture() {
    let Some(compiler) = compiler("a_kernel_compiles_for_every_architecture") else { return };
    let images = Arch::ALL.map(|arch| compiler.compile(&rms_norm(), arch.name(), arch).unwrap());
    for (i, image) in images.iter().enumerate() {
        assert!(image.starts_with(b"\x7fELF"), "{:?}", Arch::ALL[i]);
        assert!(contains(image, ".text.rms_norm") && contains(image, ".text.silu_mul_rows"));
        assert!(images[..i].iter().all(|other| other != image));
    }
    // One family's kernels on another's machine, as tests on Hopper do.
    let image = compiler.compile(&rms_norm(), "sm_90a", Arch::Sm80).unwrap();
    assert!(image.starts_with(b"\x7fELF"));
}

#[test]
fn the_second_time_it_comes_from_the_cache() {
    let Some(compiler) = compiler("the_second_time_it_comes_from_the_cache") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = CubinCache::at(&folder.path().join("cubins"));
    let kernel = rms_norm();
    let compile = |cache: &CubinCache| cache.compile(compiler, &kernel, "sm_80", Arch::Sm80).unwrap();
    let entries = || -> Vec<_> {
        std::fs::read_dir(cache.folder().unwrap()).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let first = compile(&cache);
    let second = compile(&cache);
    assert!(!first.cached && second.cached);
    assert_eq!(first.image, second.image);
    let other = cache.compile(compiler, &kernel, "sm_86", Arch::Sm86).unwrap();
    assert!(!other.cached, "another architecture has an entry of its own");
    assert_eq!(entries().len(), 2);

    for entry in entries() {
        let mut bytes = std::fs::read(&entry).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&entry, bytes).unwrap();
    }
    let third = compile(&cache);
    assert!(!third.cached, "a spoilt entry is not used");
    assert_eq!(third.image, first.image);
    assert!(compile(&cache).cached, "and is replaced");

    // A folder that cannot be: a file is in its way.
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let nowhere = CubinCache::at(&file.join("cubins"));
    assert_eq!(compile(&nowhere).image, first.image);
    assert!(!compile(&nowhere).cached && !compile(&CubinCache::disabled()).cached);
}

#[test]
fn a_source_that_does_not_compile_is_told_with_the_log() {
    let Some(compiler) = compiler("a_source_that_does_not_compile_is_told_with_the_log") else { return };
    let good = rms_norm();
    let broken = Kernel { defines: vec![("INPUT", 77), ("OUTPUT", 1)], ..good.clone() };
    let Err(Error::Compile { kernel, arch, version, log }) = compiler.compile(&broken, "sm_80", Arch::Sm80) else {
        panic!("there is no type 77")
    };
    assert_eq!((kernel.as_str(), arch.as_str()), ("rms_norm<INPUT=77,OUTPUT=1>", "sm_80"));
    assert_eq!(version, compiler.version());
    assert!(log.contains("rms_norm.cu") && log.contains("error"), "{log}");

    let Err(Error::Compile { log, .. }) = compiler.compile(&good, "sm_1", Arch::Sm80) else { panic!("no such chip") };
    assert!(log.contains("arch"), "{log}");
    let absent = Kernel { file: "absent.cu", ..good };
    let Err(Error::Compile { log, .. }) = compiler.compile(&absent, "sm_80", Arch::Sm80) else {
        panic!("no such file")
    };
    assert_eq!(log, "absent.cu is not among this crate's sources");
}

#[test]
fn a_missing_library_is_told_with_the_remedy() {
    let Err(error) = Compiler::at(Path::new("/nowhere/libnvrtc.so.13")) else { panic!("it is not there") };
    let text = error.to_string();
    assert!(text.starts_with("cannot open libnvrtc; install") && text.contains("DUQUANT_NVRTC"), "{text}");
    assert!(text.contains("Tried: /nowhere/libnvrtc.so.13: "), "{text}");
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Compiler::at(folder.path()), Err(Error::Library { library: "libnvrtc", .. })));
}
