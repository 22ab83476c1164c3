//! The CPU time that a container grants, read from the control groups (cgroup v2 `cpu.max`, v1 `cpu.cfs_quota_us`) that
//! this process is in. The tightest of a group and those above it holds.

use std::fs;
use std::path::{Path, PathBuf};

/// A bound on CPU time: so much in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    quota_us: u64,
    period_us: u64,
}

impl Quota {
    /// `quota_us` of CPU time in each `period_us`; `None` if either is 0, which grants nothing or means nothing.
    #[must_use]
    pub fn new(quota_us: u64, period_us: u64) -> Option<Self> {
        (quota_us > 0 && period_us > 0).then_some(Self { quota_us, period_us })
    }

    /// How many CPUs that is.
    #[must_use]
    pub fn cpus(self) -> f64 {
        self.quota_us as f64 / self.period_us as f64
    }

    /// How many threads can use it up. Rounded up: the standard library's `available_parallelism` rounds down, and of 1.5
    /// CPUs one thread would leave a third unused.
    #[must_use]
    pub fn threads(self) -> usize {
        usize::try_from(self.quota_us.div_ceil(self.period_us)).unwrap_or(usize::MAX)
    }
}

/// The tightest quota of the groups of this process, as the file system under `root` says. What cannot be read bounds
/// nothing.
pub(super) fn read(root: &Path) -> Option<Quota> {
    let at = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let (groups, mounts) = (at("proc/self/cgroup"), at("proc/self/mountinfo"));
    let mounts: Vec<Mount> = mounts.lines().filter_map(Mount::parse).collect();
    let quotas = groups.lines().filter_map(Group::parse).flat_map(|group| {
        let mount = mounts.iter().find(|mount| mount.is_v2 == group.is_v2);
        mount.map(|mount| tightest(root, mount, group.path)).unwrap_or_default()
    });
    quotas.min_by(|a, b| a.cpus().total_cmp(&b.cpus()))
}

/// A line of `/proc/self/cgroup` that is about CPU time: `0::/path`, or `4:cpu,cpuacct:/path`.
struct Group<'a> {
    is_v2: bool,
    path: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_v2 = controllers.is_empty();
        (is_v2 || controllers.split(',').any(|name| name == "cpu")).then_some(Self { is_v2, path })
    }
}

/// Where a hierarchy of control groups is mounted, and which of its groups is the top there.
struct Mount<'a> {
    is_v2: bool,
    top: &'a str,
    point: &'a str,
}

impl<'a> Mount<'a> {
    /// A line of `/proc/self/mountinfo`: `id parent device top point options … - type source options`.
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (top, point) = (fields.next()?, fields.next()?);
        let mut fields = kind.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let is_v2 = kind == "cgroup2";
        let is_v1 = kind == "cgroup" && options.split(',').any(|option| option == "cpu");
        (is_v2 || is_v1).then_some(Self { is_v2, top, point })
    }
}

/// The quotas of a group and of those above it, as far up as they are mounted.
fn tightest(root: &Path, mount: &Mount<'_>, group: &str) -> Vec<Quota> {
    let point = root.join(mount.point.trim_start_matches('/'));
    // Without a namespace of its own a container is told its path on the host, of which it sees the end only.
    let below = Path::new(group).strip_prefix(mount.top).unwrap_or(Path::new(""));
    let below: PathBuf = below.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect();
    below.ancestors().filter_map(|group| quota_of(&point.join(group), mount.is_v2)).collect()
}

fn quota_of(folder: &Path, is_v2: bool) -> Option<Quota> {
    let number = |text: &str| text.trim().parse().ok();
    if is_v2 {
        let text = fs::read_to_string(folder.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        // "max" is no number, and no bound.
        Quota::new(number(quota)?, number(period)?)
    } else {
        let value = |name: &str| fs::read_to_string(folder.join(name)).ok();
        // Without a bound the quota is -1.
        Quota::new(number(&value("cpu.cfs_quota_us")?)?, number(&value("cpu.cfs_period_us")?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file system with these files.
    fn read_with(files: &[(&str, &str)]) -> Option<f64> {
        let root = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let file = root.path().join(path);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        }
        read(root.path()).map(Quota::cpus)
    }

    const V2_MOUNT: &str = "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1_MOUNTS: &str = "25 22 0:22 / /proc rw - proc proc rw\n\
        30 22 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n\
        33 22 0:30 /docker/ab12 /sys/fs/cgroup/cpu,cpuacct ro,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct\n";

    #[test]
    fn version_2_in_a_namespace() {
        let with = |max| {
            read_with(&[
                ("proc/self/cgroup", "0::/\n"),
                ("proc/self/mountinfo", V2_MOUNT),
                ("sys/fs/cgroup/cpu.max", max),
            ])
        };
        assert_eq!(with("150000 100000\n"), Some(1.5));
        assert_eq!(with("max 100000\n"), None);
        assert_eq!(with("0 100000\n"), None);
        assert_eq!(with(""), None);
    }

    #[test]
    fn version_2_takes_the_tightest_of_the_groups_above() {
        let files = [
            ("proc/self/cgroup", "0::/pods/worker/main\n"),
            ("proc/self/mountinfo", V2_MOUNT),
            ("sys/fs/cgroup/pods/cpu.max", "250000 100000\n"),
            ("sys/fs/cgroup/pods/worker/cpu.max", "50000 25000\n"),
            ("sys/fs/cgroup/pods/worker/main/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/pods/other/cpu.max", "1000 100000\n"),
        ];
        assert_eq!(read_with(&files), Some(2.0));
    }

    #[test]
    fn version_1_below_the_hosts_path() {
        let with = |group, quota| {
            read_with(&[
                ("proc/self/cgroup", group),
                ("proc/self/mountinfo", V1_MOUNTS),
                ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", quota),
                ("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", "50000\n"),
                ("sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", "100000\n"),
            ])
        };
        assert_eq!(with("5:memory:/docker/ab12\n4:cpu,cpuacct:/docker/ab12\n", "320000\n"), Some(3.2));
        assert_eq!(with("4:cpu,cpuacct:/docker/ab12\n", "-1\n"), None);
        assert_eq!(with("4:cpu,cpuacct:/docker/ab12/inner\n", "-1\n"), Some(0.5));
        assert_eq!(with("4:cpu,cpuacct:/../elsewhere\n", "320000\n"), Some(3.2), "a group out of sight");
        assert_eq!(with("5:memory:/docker/ab12\n", "320000\n"), None, "no group for CPU time");
    }

    #[test]
    fn without_control_groups_there_is_no_bound() {
        assert_eq!(read_with(&[]), None);
        assert_eq!(read_with(&[("proc/self/cgroup", "nonsense"), ("proc/self/mountinfo", "a - b\n - \n")]), None);
    }

    #[test]
    fn threads_are_rounded_up() {
        let threads = |quota_us| Quota::new(quota_us, 100_000).map(Quota::threads);
        assert_eq!([1, 100_000, 100_001, 150_000, 200_000].map(threads), [1, 1, 2, 2, 2].map(Some));
    }
}
