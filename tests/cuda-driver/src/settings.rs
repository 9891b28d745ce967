//! How the emulated device behaves: read from `TRAMONTANE_EMULATED_CUDA`.

use std::path::PathBuf;

/// Settings of the emulated driver, `key=value` joined by commas in `TRAMONTANE_EMULATED_CUDA`.
///
/// Without that variable there are no devices. With `TRAMONTANE_EMULATED_CUDA=on` there is one of 1 GiB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `devices=N`: number of devices.
    pub devices: usize,
    /// `memory=BYTES`: memory of each device.
    pub memory: usize,
    /// `capability=80`: compute capability times ten.
    pub capability: i32,
    /// `driver=13000`: version of the driver.
    pub driver: i32,
    /// `alloc_fails=N`: the N-th allocation (from 1) finds no memory.
    pub alloc_fails: Option<usize>,
    /// `alloc_ends=N`: the N-th allocation and all after it find no memory.
    pub alloc_ends: Option<usize>,
    /// `launch_fails=N`: the N-th launch (from 1) fails.
    pub launch_fails: Option<usize>,
    /// `skip=KERNEL`: launches of this kernel do nothing, so its results are wrong.
    pub skip: Option<String>,
    /// `graph_fails=FUNCTION`: this function of graphs, such as `cuGraphInstantiateWithFlags`, is not supported.
    pub graph_fails: Option<String>,
    /// `log=FILE`: each mistake is added to this file as a line.
    pub log: Option<PathBuf>,
    /// `trace=FILE`: each call that asks the device for work is added to this file as a line.
    pub trace: Option<PathBuf>,
}

impl Settings {
    /// Settings from the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        Self::parse(std::env::var("TRAMONTANE_EMULATED_CUDA").ok().as_deref())
    }

    /// Settings from a text; what cannot be read is left as it is by default.
    #[must_use]
    pub fn parse(text: Option<&str>) -> Self {
        let mut s = Self {
            devices: usize::from(text.is_some()),
            memory: 1 << 30,
            capability: 80,
            driver: 13000,
            alloc_fails: None,
            alloc_ends: None,
            launch_fails: None,
            skip: None,
            graph_fails: None,
            log: None,
            trace: None,
        };
        for (key, value) in
            text.unwrap_or_default().split(',').filter_map(|pair| pair.split_once('='))
        {
            match key {
                "devices" => s.devices = value.parse().unwrap_or(s.devices),
                "memory" => s.memory = value.parse().unwrap_or(s.memory),
                "capability" => s.capability = value.parse().unwrap_or(s.capability),
                "driver" => s.driver = value.parse().unwrap_or(s.driver),
                "alloc_fails" => s.alloc_fails = value.parse().ok(),
                "alloc_ends" => s.alloc_ends = value.parse().ok(),
                "launch_fails" => s.launch_fails = value.parse().ok(),
                "skip" => s.skip = Some(value.to_owned()),
                "graph_fails" => s.graph_fails = Some(value.to_owned()),
                "log" => s.log = Some(value.into()),
                "trace" => s.trace = Some(value.into()),
                _ => {}
            }
        }
        s
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_device_unless_asked_for() {
        assert_eq!(Settings::parse(None).devices, 0);
        assert_eq!(Settings::parse(Some("on")).devices, 1);
        let s = Settings::parse(Some("devices=2,memory=4096,alloc_fails=3,skip=rope"));
        assert_eq!(
            (s.devices, s.memory, s.alloc_fails, s.skip.as_deref()),
            (2, 4096, Some(3), Some("rope"))
        );
    }
}
