//! The image: what it is built from and with, what it holds, as whom it runs, and its health check, which is run.

use std::collections::BTreeSet;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::process::Command;

use serde_json::Value;

use crate::monitoring::Served;
use crate::{at, check_image, config, files, has_extension, port, root, text, yaml};

/// What debian:…-slim has of what a binary is linked with.
const BASE: [&str; 2] = ["libc6", "libgcc-s1"];

/// One instruction of a Dockerfile, its lines joined.
#[derive(Debug)]
pub(crate) struct Instruction {
    pub(crate) word: String,
    pub(crate) rest: String,
}

pub(crate) fn instructions(path: &str) -> Vec<Instruction> {
    let text = text(path);
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let joined = lines.fold(String::new(), |joined, line| match line.strip_suffix('\\') {
        Some(line) => joined + line.trim_end() + " ",
        None => joined + line + "\n",
    });
    let one = |line: &str| {
        let (word, rest) = line.split_once(' ').unwrap_or_else(|| panic!("{path}: {line}"));
        Instruction { word: word.to_owned(), rest: rest.trim().to_owned() }
    };
    joined.lines().map(one).collect()
}

/// What stands behind a word, in the order of the file.
fn all<'i>(instructions: &'i [Instruction], word: &str) -> Vec<&'i str> {
    instructions.iter().filter(|one| one.word == word).map(|one| one.rest.as_str()).collect()
}

#[track_caller]
fn only<'i>(instructions: &'i [Instruction], word: &str) -> &'i str {
    let all = all(instructions, word);
    assert_eq!(all.len(), 1, "{word}: {all:?}");
    all[0]
}

/// A list in JSON's form: no shell is between the words and what runs.
#[track_caller]
fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// The file that the image's command reads.
pub(crate) fn config_path() -> String {
    words(only(&instructions("deploy/Dockerfile"), "CMD")).pop().unwrap()
}

/// The stages' images, with the arguments before the first filled in.
fn images(instructions: &[Instruction]) -> Vec<String> {
    let defaults: Vec<(&str, &str)> =
        all(instructions, "ARG").into_iter().filter_map(|argument| argument.split_once('=')).collect();
    let filled = |from: &str| {
        let image = from.split(' ').next().unwrap().to_owned();
        defaults.iter().fold(image, |image, (name, value)| image.replace(&format!("${{{name}}}"), value))
    };
    all(instructions, "FROM").into_iter().map(filled).collect()
}

/// The stages, each from its FROM on.
fn stages(instructions: Vec<Instruction>) -> Vec<Vec<Instruction>> {
    let mut stages: Vec<Vec<Instruction>> = Vec::new();
    for one in instructions {
        if one.word == "FROM" {
            stages.push(Vec::new());
        }
        if let Some(stage) = stages.last_mut() {
            stage.push(one);
        }
    }
    stages
}

#[test]
fn every_image_is_of_one_version_and_the_compiler_new_enough() {
    for path in files("deploy").iter().filter(|path| path.ends_with("Dockerfile")) {
        for image in images(&instructions(path)) {
            check_image(&image);
        }
        assert!(!text(path).contains("://"), "{path} names a host");
    }
    let images = images(&instructions("deploy/Dockerfile"));
    let [build, runtime] = &images[..] else { panic!("two stages: {images:?}") };
    let (compiler, debian) = build.strip_prefix("rust:").and_then(|tag| tag.split_once("-slim-")).unwrap();
    assert_eq!(*runtime, format!("debian:{debian}-slim"), "what was linked there is run here");
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let version = |text: &str| text.split('.').map(|part| part.parse().unwrap()).collect::<Vec<u32>>();
    let least = manifest["package"]["rust-version"].as_str().unwrap();
    assert!(version(compiler) >= version(least), "Rust {compiler} builds no package that wants {least}");
}

#[test]
fn what_the_build_needs_is_named_in_one_place() {
    let mut stages = stages(instructions("deploy/Dockerfile"));
    let runtime = stages.pop().unwrap();
    let [build] = &stages[..] else { panic!("two stages") };
    let runs = all(build, "RUN");
    assert_eq!(runs[0], "tests/setup/build", "the packages and the CMake of `make setup-build`");
    assert!(!runs.iter().any(|run| run.contains("apt-get")), "packages beside those: {runs:?}");
    let given: BTreeSet<&str> = all(build, "COPY")[0].split(' ').collect();
    for needed in ["tests/setup/lib.sh", "tests/setup/build", "tests/setup/build-requirements.txt"] {
        assert!(given.contains(needed), "{needed} is not there yet when tests/setup/build runs");
    }
    assert!(runs.iter().any(|run| run.contains("cargo build --release --locked")), "{runs:?}");
    assert!(runs.iter().any(|run| run.contains("grep '^onnxruntime==' tests/requirements.txt")), "{runs:?}");
    let pinned = text("tests/requirements.txt");
    assert_eq!(pinned.lines().filter(|line| line.starts_with("onnxruntime==")).count(), 1, "one ONNX Runtime");
    let library = only(&runtime, "ENV").strip_prefix("ORT_DYLIB_PATH=").unwrap();
    assert!(runs.iter().any(|run| run.contains(&format!("/image{library}"))), "{library} is not in the image");
}

/// The packages that hold what the binary is linked with, by the names of this Debian.
fn linked_packages() -> BTreeSet<String> {
    let output = |program: &str, args: &[&str]| {
        let ran = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(ran.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    let dynamic = output("readelf", &["--dynamic", env!("CARGO_BIN_EXE_forebay")]);
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let libraries = needed.filter_map(|line| line.split_once('[')?.1.split_once(']')).map(|(library, _)| library);
    let package = |library: &str| {
        let owners = output("dpkg-query", &["--search", &format!("*/{library}")]);
        let of_this_machine = |line: &str| line.contains(&format!("/{}-linux-gnu/{library}", std::env::consts::ARCH));
        let line = owners.lines().find(|line| line.ends_with(library) && of_this_machine(line));
        line.or_else(|| owners.lines().next()).and_then(|line| line.split([':', ',']).next()).unwrap().to_owned()
    };
    libraries.map(package).collect()
}

#[test]
fn the_image_holds_the_libraries_that_the_binary_is_linked_with() {
    let images = images(&instructions("deploy/Dockerfile"));
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).unwrap_or("none");
    if images[1] != format!("debian:{codename}-slim") {
        crate::skip("the_image_holds_the_libraries_that_the_binary_is_linked_with", "not the image's Debian");
        return;
    }
    let runtime = stages(instructions("deploy/Dockerfile")).pop().unwrap();
    let install =
        only(&runtime, "RUN").split("&&").find_map(|part| part.trim().strip_prefix("apt-get install ")).unwrap();
    let installed: BTreeSet<String> =
        install.split_whitespace().filter(|word| !word.starts_with('-')).map(str::to_owned).collect();
    let mut wanted = linked_packages();
    wanted.retain(|package| !BASE.contains(&package.as_str()));
    assert!(wanted.len() >= 4, "{wanted:?}");
    wanted.insert("ca-certificates".to_owned());
    assert_eq!(installed, wanted);
}

#[test]
fn it_runs_as_nobody_and_says_what_it_is() {
    let runtime = stages(instructions("deploy/Dockerfile")).pop().unwrap();
    let user = only(&runtime, "USER");
    let numbers: Vec<u32> = user.split(':').map(|number| number.parse().unwrap()).collect();
    assert!(numbers.len() == 2 && !numbers.contains(&0), "{user}: numbers, so that runAsNonRoot can be checked");
    assert_eq!(only(&runtime, "STOPSIGNAL"), "SIGTERM");
    assert_eq!(words(only(&runtime, "ENTRYPOINT")), ["/usr/local/bin/forebay"]);
    assert_eq!(words(only(&runtime, "CMD"))[..2], ["run", "--config"]);
    assert!(all(&runtime, "ADD").is_empty(), "COPY does what it says");
    let labels = only(&runtime, "LABEL");
    for label in ["title", "description", "licenses", "version", "revision", "created", "base.name"] {
        assert!(labels.contains(&format!("org.opencontainers.image.{label}=")), "no label {label}");
    }
    let version = format!("VERSION={}", env!("CARGO_PKG_VERSION"));
    assert!(all(&runtime, "ARG").contains(&version.as_str()), "the image's version is the package's: {version}");
    let exposed: u16 = only(&runtime, "EXPOSE").parse().unwrap();
    for path in files("deploy").iter().filter(|path| has_extension(path, &["toml"])) {
        assert_eq!(config(path).admin.listen.port(), exposed, "{path}");
        assert!(config(path).admin.listen.ip().is_unspecified(), "{path}: probes come from outside of the container");
    }
}

/// Whether the context leaves a path out: the last pattern that fits decides, and one that names a folder fits what is in it.
fn is_ignored(path: &str) -> bool {
    let mut ignored = false;
    for line in text("deploy/Dockerfile.dockerignore").lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (pattern, keeps) = line.strip_prefix('!').map_or((line, false), |pattern| (pattern, true));
        let inside =
            |pattern: &str| path == pattern || path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('/'));
        let fits = match pattern.split_once("/**/") {
            Some((folder, name)) => path.starts_with(&format!("{folder}/")) && path.split('/').any(|part| part == name),
            None => pattern == "*" || inside(pattern),
        };
        if fits {
            ignored = !keeps;
        }
    }
    ignored
}

#[test]
fn the_context_has_what_the_build_reads_and_little_else() {
    for path in [
        "target/release/forebay",
        ".venv/test/bin/python",
        ".git/config",
        "deploy/worker.toml",
        "tests/fuzz/Cargo.toml",
    ] {
        assert!(is_ignored(path), "{path}");
    }
    for one in
        instructions("deploy/Dockerfile").iter().filter(|one| one.word == "COPY" && !one.rest.starts_with("--from"))
    {
        let sources: Vec<&str> = one.rest.split(' ').collect();
        for source in &sources[..sources.len() - 1] {
            assert!(root().join(source).exists(), "COPY {source}");
            assert!(*source == "." || !is_ignored(source), "COPY {source}, which the context leaves out");
        }
    }
    // What the sources include, and what Cargo wants to be there, be it built or not.
    let mut read = vec!["Cargo.toml".to_owned(), "Cargo.lock".to_owned(), "README.md".to_owned(), "LICENSE".to_owned()];
    for path in files("src").iter().filter(|path| has_extension(path, &["rs"])) {
        let text = text(path);
        let included = text.split("include_str!(\"").skip(1).chain(text.split("include_bytes!(\"").skip(1));
        for name in included.map(|rest| rest.split('"').next().unwrap()) {
            let file = root()
                .join(path)
                .parent()
                .unwrap()
                .join(name)
                .canonicalize()
                .unwrap_or_else(|_| panic!("{path}: {name}"));
            read.push(file.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
        }
        read.push(path.clone());
    }
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    for (kind, folder) in [("test", "tests"), ("bench", "benches")] {
        for target in manifest[kind].as_array().unwrap() {
            let by_name = || format!("{folder}/{}.rs", target["name"].as_str().unwrap());
            read.push(target.get("path").and_then(toml::Value::as_str).map_or_else(by_name, str::to_owned));
        }
    }
    for path in &read {
        assert!(root().join(path).exists(), "{path}");
        assert!(!is_ignored(path), "{path} is left out of the context");
    }
}

/// A health check's command, asked of another port.
fn is_healthy(command: &[String], port: u16) -> bool {
    let command: Vec<String> = command.iter().map(|word| word.replace("/9640 ", &format!("/{port} "))).collect();
    assert!(command.iter().any(|word| word.contains(&port.to_string())), "{command:?}");
    Command::new(&command[0]).args(&command[1..]).output().unwrap().status.success()
}

#[test]
fn the_health_checks_ask_a_worker_whether_it_lives_and_whether_it_is_ready() {
    let runtime = stages(instructions("deploy/Dockerfile")).pop().unwrap();
    let lives = words(only(&runtime, "HEALTHCHECK").split_once("CMD ").unwrap().1);
    let compose = yaml("deploy/compose.yaml");
    let test = at(&compose, "/services/forebay/healthcheck/test").as_array().unwrap();
    assert_eq!(test[0], "CMD");
    // `$$` is how compose writes a dollar.
    let ready: Vec<String> = test[1..].iter().filter_map(Value::as_str).map(|word| word.replace("$$", "$")).collect();
    let served = Served::start();
    let asked = port(&served.address.to_string());
    assert!(is_healthy(&lives, asked) && is_healthy(&ready, asked));
    served.health.not_ready("group", "no partitions yet");
    assert!(is_healthy(&lives, asked) && !is_healthy(&ready, asked));
    served.health.died();
    assert!(!is_healthy(&lives, asked));
    // The near end of a connection: nobody listens at that port, and nobody else is given it meanwhile.
    let far_end = TcpListener::bind("127.0.0.1:0").unwrap();
    let near_end = TcpStream::connect(far_end.local_addr().unwrap()).unwrap();
    let nobody = near_end.local_addr().unwrap().port();
    assert!(!is_healthy(&lives, nobody) && !is_healthy(&ready, nobody));
}
