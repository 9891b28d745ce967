//! `pull`: bring a model of the hub into the cache.

use std::process::ExitCode;

use serde_json::json;
use tramontane::Error;
use tramontane::error::Result;
use tramontane::generate::CancelToken;
use tramontane::hub::{self, HubOptions, Pulled};
use tramontane_models::catalogue;

use super::catalogue::notices;
use super::download::DownloadBar;
use super::generate::print;
use super::{signals, talk};

/// Download a model from the hub, or bring it up to date
///
/// Of several copies of the weights one is fetched, in safetensors. A download that was interrupted goes on where
/// it stopped, and every file is checked against its hash. stdout gets the folder with the files.
///
/// The cache is that of the other Hugging Face tools: HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and
/// HF_HUB_OFFLINE are obeyed.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The model: organisation/name[@revision], or a short name of the catalogue (tramontane list --catalogue)
    model: String,

    /// A branch, a tag or a commit [default: main]
    #[arg(long, value_name = "REVISION", env = "TRAMONTANE_REVISION")]
    revision: Option<String>,

    /// Check the files that are there already by their hashes, and fetch again those that are wrong
    #[arg(long, env = "TRAMONTANE_FORCE")]
    force: bool,

    /// Only look whether the model is in the cache
    #[arg(long, env = "TRAMONTANE_OFFLINE")]
    offline: bool,

    /// Print one JSON object instead of the folder
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    /// Say nothing on stderr but errors
    #[arg(short, long, env = "TRAMONTANE_QUIET")]
    quiet: bool,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let (repo, revision) = args.reference()?;
    let mut options = HubOptions::from_env();
    options.offline |= args.offline;
    options.force = args.force;
    let known = catalogue::by_repository(&repo);
    if let (Some(entry), false) = (known, args.quiet) {
        for line in notices(entry, &options.endpoint) {
            talk::say(&format!("{repo}: {line}"));
        }
    }
    let cancel = CancelToken::default();
    signals::cancel_on_interrupt(&cancel);
    let bar = DownloadBar::new(!args.quiet, cancel);
    let pulled = hub::pull(&repo, &revision, &options, &bar);
    bar.done();
    let pulled = pulled?;
    let size: u64 = pulled.files.iter().map(|file| file.size).sum();
    if !args.quiet {
        talk::say(&format!(
            "{repo}: {} files, {}, of which {} fetched now",
            pulled.files.len(),
            talk::bytes(size),
            talk::bytes(pulled.transferred)
        ));
    }
    if args.json {
        print(&format!("{}\n", report(&pulled, size, known)))?;
    } else {
        print(&format!("{}\n", pulled.path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    /// The repository and the revision that are meant.
    fn reference(&self) -> Result<(String, String)> {
        let (repo, named) = hub::parse_name(self.model.trim())?;
        match &self.revision {
            Some(revision) if self.model.contains('@') => Err(Error::bad_input(format!(
                "`{}` names a revision, and --revision is {revision}: expected one of them",
                self.model
            ))),
            Some(revision) => Ok((repo, revision.clone())),
            None => Ok((repo, named)),
        }
    }
}

/// The JSON object of a download: its field names are stable.
fn report(pulled: &Pulled, size: u64, known: Option<&catalogue::Entry>) -> serde_json::Value {
    let files: Vec<_> = pulled
        .files
        .iter()
        .map(|file| json!({ "name": file.name, "size": file.size, "hash": file.hash }))
        .collect();
    json!({
        "name": pulled.repo,
        "revision": pulled.revision,
        "commit": pulled.commit,
        "path": pulled.path.to_string_lossy(),
        "files": files,
        "bytes": size,
        "transferred": pulled.transferred,
        "licence": known.map(|entry| &entry.licence),
        "limits": known.and_then(|entry| entry.limits.as_ref()),
    })
}
