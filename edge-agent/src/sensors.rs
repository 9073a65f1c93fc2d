//! This machine's own sensors, as Linux shows them in files: temperatures from `/sys/class/hwmon` and
//! `/sys/class/thermal`, load averages and memory from `/proc`.
//!
//! What cannot be read is left out, because sensors come and go (a disk sleeps, a module is unloaded): a
//! machine without any temperature sensor still reports its load. The files are looked for each time.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// One measured number.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measurement {
    /// The last level of its topic, unique among the measurements of one moment.
    pub(crate) metric: String,
    /// The number.
    pub(crate) value: f64,
    /// Its unit, as UCUM writes it: `Cel` is spelled `°C`, `1` is a bare number.
    pub(crate) unit: &'static str,
}

/// Where the sensors' files are.
#[derive(Clone, Debug)]
pub(crate) struct Sensors {
    root: PathBuf,
}

impl Sensors {
    /// Sensors below `root`; `/` on a real machine.
    pub(crate) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Measures everything there is.
    pub(crate) fn measure(&self) -> Vec<Measurement> {
        let mut measurements = self.temperatures();
        measurements.extend(self.load_averages());
        measurements.extend(self.memory());
        measurements
    }

    /// A chip that hwmon knows is not reported a second time as a thermal zone: it has the same name in both.
    fn temperatures(&self) -> Vec<Measurement> {
        let mut temperatures = BTreeMap::new();
        for chip in folders(&self.root.join("sys/class/hwmon"), "hwmon") {
            let Some(name) = text(&chip.join("name")) else { continue };
            for (input, path) in hwmon_inputs(&chip) {
                let label = text(&chip.join(format!("{input}_label")));
                let suffix =
                    label.map_or_else(|| number_above_one(&input), |label| format!("_{}", slug(&label)));
                note_temperature(&mut temperatures, &format!("temperature_{}{suffix}", slug(&name)), &path);
            }
        }
        let known: Vec<String> = temperatures.keys().cloned().collect();
        for zone in folders(&self.root.join("sys/class/thermal"), "thermal_zone") {
            let Some(kind) = text(&zone.join("type")) else { continue };
            let metric = format!("temperature_{}", slug(&kind));
            if !known.contains(&metric) {
                note_temperature(&mut temperatures, &metric, &zone.join("temp"));
            }
        }
        let measurement = |(metric, value)| Measurement { metric, value, unit: "°C" };
        temperatures.into_iter().map(measurement).collect()
    }

    fn load_averages(&self) -> Vec<Measurement> {
        let text = text(&self.root.join("proc/loadavg")).unwrap_or_default();
        let names = ["load1", "load5", "load15"].into_iter();
        let measurement = |(name, value): (&str, &str)| {
            Some(Measurement { metric: name.to_owned(), value: value.parse().ok()?, unit: "1" })
        };
        names.zip(text.split_ascii_whitespace()).filter_map(measurement).collect()
    }

    fn memory(&self) -> Vec<Measurement> {
        let text = text(&self.root.join("proc/meminfo")).unwrap_or_default();
        let kib = |name: &str| -> Option<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        };
        let (Some(total), Some(available)) = (kib("MemTotal"), kib("MemAvailable")) else {
            return Vec::new();
        };
        let measurement = |metric: &str, value, unit| Measurement { metric: metric.to_owned(), value, unit };
        let mut measurements = vec![measurement("memory_available", available * 1024.0, "By")];
        if total > 0.0 {
            let used = (total - available) / total * 100.0;
            measurements.push(measurement("memory_used", (used * 10.0).round() / 10.0, "%"));
        }
        measurements
    }
}

/// Reads thousandths of a degree; a name that is taken gets a number behind it.
fn note_temperature(temperatures: &mut BTreeMap<String, f64>, metric: &str, path: &Path) {
    let Some(thousandths) = text(path).and_then(|text| text.parse::<f64>().ok()) else { return };
    let numbered = (2..100).map(|number| format!("{metric}_{number}"));
    let free =
        std::iter::once(metric.to_owned()).chain(numbered).find(|name| !temperatures.contains_key(name));
    if let Some(name) = free {
        temperatures.insert(name, thousandths / 1000.0);
    }
}

/// The inputs `temp1`, `temp2` ... of a chip in the order of their numbers, with the files that hold them.
fn hwmon_inputs(chip: &Path) -> Vec<(String, PathBuf)> {
    let mut inputs: Vec<(u32, String, PathBuf)> = entries(chip)
        .filter_map(|(name, path)| {
            let input = name.strip_suffix("_input")?;
            let number = input.strip_prefix("temp")?.parse().ok()?;
            Some((number, input.to_owned(), path))
        })
        .collect();
    inputs.sort();
    inputs.into_iter().map(|(_, input, path)| (input, path)).collect()
}

/// `temp1` is the chip's one temperature and needs no number; `temp2` becomes `_2`.
fn number_above_one(input: &str) -> String {
    match input.strip_prefix("temp") {
        None | Some("1") => String::new(),
        Some(number) => format!("_{number}"),
    }
}

/// The folders in `folder` whose names begin with `prefix`, in the order of the numbers behind it.
fn folders(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = entries(folder)
        .filter_map(|(name, path)| Some((name.strip_prefix(prefix)?.parse().ok()?, path)))
        .collect();
    found.sort();
    found.into_iter().map(|(_, path)| path).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// Lower case, everything but letters and digits as single underscores: `Package id 0` is `package_id_0`.
fn slug(text: &str) -> String {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("_")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine whose files are these.
    fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Sensors) {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let sensors = Sensors::new(root.path());
        (root, sensors)
    }

    fn check(files: &[(&str, &str)], expected: &[(&str, f64, &'static str)]) {
        let (_root, sensors) = machine(files);
        let measured = sensors.measure();
        let measured: Vec<_> = measured.iter().map(|m| (m.metric.as_str(), m.value, m.unit)).collect();
        assert_eq!(measured, expected);
    }

    #[test]
    fn temperatures_are_named_after_chip_and_label() {
        check(
            &[
                ("sys/class/hwmon/hwmon0/name", "coretemp\n"),
                ("sys/class/hwmon/hwmon0/temp1_input", "45500\n"),
                ("sys/class/hwmon/hwmon0/temp1_label", "Package id 0\n"),
                ("sys/class/hwmon/hwmon0/temp2_input", "-1000\n"),
                ("sys/class/hwmon/hwmon0/fan1_input", "1200\n"),
                ("sys/class/hwmon/hwmon1/name", "cpu_thermal\n"),
                ("sys/class/hwmon/hwmon1/temp1_input", "51540\n"),
                ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
                ("sys/class/thermal/thermal_zone0/temp", "51540\n"),
                ("sys/class/thermal/thermal_zone1/type", "acpitz\n"),
                ("sys/class/thermal/thermal_zone1/temp", "27800\n"),
                ("sys/class/thermal/thermal_zone2/type", "acpitz\n"),
                ("sys/class/thermal/thermal_zone2/temp", "29800\n"),
            ],
            &[
                ("temperature_acpitz", 27.8, "°C"),
                ("temperature_acpitz_2", 29.8, "°C"),
                ("temperature_coretemp_2", -1.0, "°C"),
                ("temperature_coretemp_package_id_0", 45.5, "°C"),
                ("temperature_cpu_thermal", 51.54, "°C"),
            ],
        );
    }

    #[test]
    fn load_and_memory_are_measured_and_garbage_is_left_out() {
        check(
            &[
                ("proc/loadavg", "0.52 0.58 nonsense 1/467 1234\n"),
                ("proc/meminfo", "MemTotal:        1000 kB\nMemFree:  1 kB\nMemAvailable:     250 kB\n"),
                ("sys/class/thermal/thermal_zone0/type", "broken\n"),
                ("sys/class/thermal/thermal_zone0/temp", "\n"),
            ],
            &[
                ("load1", 0.52, "1"),
                ("load5", 0.58, "1"),
                ("memory_available", 256_000.0, "By"),
                ("memory_used", 75.0, "%"),
            ],
        );
        check(&[], &[]);
    }

    #[test]
    fn every_metric_of_this_machine_is_a_level_of_a_topic() {
        let measured = Sensors::new("/").measure();
        assert!(measured.iter().any(|measurement| measurement.metric == "load1"), "{measured:?}");
        assert!(
            measured.iter().all(|measurement| crate::reading::is_level(&measurement.metric)),
            "{measured:?}"
        );
    }
}
