//! Loading the model, and how long that takes.

use tramontane::Model;
use tramontane::error::Result;

use crate::cli::args::ModelArgs;

/// Milliseconds of loading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) ms: f64,
    pub(super) cold_ms: Option<f64>,
}

/// Loads the model; if `twice`, first with its files out of the page cache, where the system lets go of them.
pub(super) fn load(args: &ModelArgs, twice: bool) -> Result<(Model, Load)> {
    let cold_ms = match twice && forget_files(args)? {
        true => Some(milliseconds(&args.load()?)),
        false => None,
    };
    let model = args.load()?;
    let ms = milliseconds(&model);
    Ok((model, Load { ms, cold_ms }))
}

fn milliseconds(model: &Model) -> f64 {
    model.load_time().as_secs_f64() * 1e3
}

/// Asks the system to drop the weight files from its page cache; `false` where that cannot be had.
fn forget_files(args: &ModelArgs) -> Result<bool> {
    let plan = args.plan()?;
    let paths: Vec<_> = plan.checkpoint.files().iter().map(|file| file.path.clone()).collect();
    // Mapped pages would stay.
    drop(plan);
    Ok(!paths.is_empty() && paths.iter().all(|path| forget(path)))
}

#[cfg(target_os = "linux")]
fn forget(path: &std::path::Path) -> bool {
    let forgotten = |file| {
        // Pages that have not been written yet cannot be dropped.
        rustix::fs::fdatasync(&file)?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
    };
    std::fs::File::open(path).is_ok_and(|file| forgotten(file).is_ok())
}

#[cfg(not(target_os = "linux"))]
fn forget(_path: &std::path::Path) -> bool {
    false
}
