//! A stage's name in, the instructions of its measured part out: this program again, run by callgrind.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::WARM_UP_ROUNDS;
use crate::stages::Stage;

/// Counting begins anew where the measured part is entered; what was counted is written where it has ended, as the first
/// of two files. Callgrind does both for the thread that gets there and for no other.
const MARKS: [&str; 2] = ["--zero-before=*measured_part*", "--dump-before=*measured_end*"];

/// Callgrind counts `rep stosb` and `rep movsb` once a byte, the processor as one instruction; past these sizes glibc's
/// memset and memcpy use them. With the sizes out of reach they store a vector an instruction.
const NO_REPEATS: &str = "glibc.cpu.x86_rep_stosb_threshold=0x40000000:glibc.cpu.x86_rep_movsb_threshold=0x40000000";

/// Instructions of a round: of its measured part, or with several threads of all that one round more adds.
pub(crate) fn instructions(stage: &Stage, folder: &Path) -> anyhow::Result<u64> {
    if stage.threads {
        let whole = |warm_up| run(stage.name, warm_up, &[], folder, "");
        let (less, more) = (whole(WARM_UP_ROUNDS)?, whole(WARM_UP_ROUNDS + 1)?);
        more.checked_sub(less).with_context(|| format!("stage {}: a round more took fewer instructions", stage.name))
    } else {
        run(stage.name, WARM_UP_ROUNDS, &MARKS, folder, ".1")
    }
}

/// Runs a stage and reads the sum in the file that callgrind wrote under this ending.
fn run(stage: &str, warm_up: usize, marks: &[&str], folder: &Path, ending: &str) -> anyhow::Result<u64> {
    let out = folder.join(format!("{stage}.{warm_up}"));
    let ran = Command::new("valgrind")
        .env("GLIBC_TUNABLES", NO_REPEATS)
        .args(["--tool=callgrind", "--quiet"])
        .args(marks)
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["--stage", stage, "--warm-up", &warm_up.to_string()])
        .output()
        .context("cannot start valgrind (the Debian package valgrind; `make bench-check` installs it)")?;
    let said = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "stage {stage} under callgrind ended with {}:\n{said}", ran.status);
    let file = folder.join(format!("{stage}.{warm_up}{ending}"));
    let text = fs::read_to_string(file).with_context(|| format!("callgrind wrote no figures of {stage}:\n{said}"))?;
    total(&text).with_context(|| format!("no sum in callgrind's figures of stage {stage}"))
}

/// The dump's own sum of its one event, instructions read.
fn total(dump: &str) -> Option<u64> {
    dump.lines().find_map(|line| line.strip_prefix("summary: "))?.trim().parse().ok()
}
