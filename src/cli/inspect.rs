//! `inspect`: what a model is, and what it needs. No weight is read.

mod layers;

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;
use tramontane::checkpoint::Layout;
use tramontane::error::{Result, printable};
use tramontane::memory::{self, Estimate};
use tramontane::model::Plan;
use tramontane::tokenizer::Kind;
use tramontane::{Format, KvFormat, Placement};
use tramontane_models::catalogue::Entry;

use super::args::ModelArgs;
use super::catalogue;
use super::generate::print;
use super::talk;

/// Contexts that the memory is told for, in tokens, as far as the model goes.
const CONTEXTS: &[usize] = &[2048, 8192, 32_768, 131_072];

/// Show what a model is: shapes, parameters, memory
///
/// Nothing but the small files and the headers of the weights is read, so this is quick for any model.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print one JSON object instead of text
    #[arg(long, env = "TRAMONTANE_JSON")]
    json: bool,

    /// List every tensor with its type and shape
    #[arg(long)]
    tensors: bool,

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: Args) -> Result<ExitCode> {
    let plan = args.model.plan()?;
    let placement = args.model.placement(&plan)?;
    let report = Report::new(&plan, &args.model, placement);
    if args.json {
        let mut value = serde_json::to_value(&report).unwrap_or_default();
        if args.tensors {
            value["tensors"] = plan
                .checkpoint
                .tensors()
                .map(|t| json!({ "name": t.name, "dtype": format!("{:?}", t.dtype), "shape": t.shape }))
                .collect();
        }
        print(&format!("{value}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&report.text())?;
    if args.tensors {
        for t in plan.checkpoint.tensors() {
            let dtype = format!("{:?}", t.dtype);
            print(&format!(
                "{dtype:<8} {:<16} {}\n",
                format!("{:?}", t.shape),
                printable(&t.name)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is told about a model: the field names of the JSON object are stable.
#[derive(Serialize)]
struct Report {
    name: String,
    family: String,
    layout: &'static str,
    parameters: u64,
    hidden: usize,
    vocab: usize,
    n_layers: usize,
    layers: Vec<layers::Group>,
    tied_head: bool,
    context: usize,
    stored: BTreeMap<String, Stored>,
    files: Vec<File>,
    tokenizer: Option<TokenizerReport>,
    template: Option<String>,
    end_tokens: Vec<u32>,
    warnings: Vec<String>,
    run: Run,
    /// What the catalogue knows about it.
    catalogue: Option<&'static Entry>,
    memory: Vec<Need>,
    free_bytes: Option<u64>,
}

/// The tensors of one type.
#[derive(Default, Serialize)]
struct Stored {
    tensors: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct File {
    path: String,
    bytes: u64,
}

#[derive(Serialize)]
struct TokenizerReport {
    kind: &'static str,
    version: Option<String>,
    ids: usize,
    bos: Option<u32>,
    adds_bos: bool,
}

/// How the model would run with these flags.
#[derive(Serialize)]
struct Run {
    device: String,
    threads: usize,
    format: String,
    kv: String,
    weight_bytes_per_token: u64,
}

/// What the model needs in one format at one length.
#[derive(Serialize)]
struct Need {
    format: String,
    kv: String,
    context: usize,
    #[serde(flatten)]
    estimate: Estimate,
    total: u64,
    fits: Option<bool>,
}

impl Report {
    fn new(plan: &Plan, args: &ModelArgs, placement: Placement) -> Self {
        let (a, checkpoint) = (&plan.architecture, &plan.checkpoint);
        let free_bytes = placement.free;
        let mut stored: BTreeMap<String, Stored> = BTreeMap::new();
        for tensor in checkpoint.tensors() {
            let of_type = stored.entry(format!("{:?}", tensor.dtype)).or_default();
            of_type.tensors += 1;
            of_type.bytes += tensor.bytes.len() as u64;
        }
        let (format, kv) = (plan.format(args.format()), plan.kv(args.kv(), args.format()));
        let file = |file: &tramontane::checkpoint::WeightFile| File {
            path: file.path.display().to_string(),
            bytes: file.size,
        };
        Self {
            name: plan.name.clone(),
            family: a.family.clone(),
            layout: match checkpoint.layout() {
                Layout::HuggingFace => "hugging face",
                Layout::MistralNative => "mistral",
            },
            parameters: a.n_parameters(),
            hidden: a.hidden,
            vocab: a.vocab,
            n_layers: a.layers.len(),
            layers: layers::groups(a),
            tied_head: a.head.tied,
            context: plan.context(),
            stored,
            files: checkpoint.files().iter().map(file).collect(),
            tokenizer: plan.tokenizer.as_ref().map(TokenizerReport::new),
            template: plan.chat.as_ref().map(|chat| chat.source().to_owned()),
            end_tokens: plan.eos.iter().copied().collect(),
            warnings: plan.warnings.clone(),
            run: Run {
                device: placement.device,
                threads: placement.threads,
                format: format.to_string(),
                kv: kv.to_string(),
                weight_bytes_per_token: memory::weight_bytes_per_token(a, format),
            },
            catalogue: catalogue::entry_of(&plan.name),
            memory: needs(plan, args, free_bytes),
            free_bytes,
        }
    }

    /// The report for people.
    fn text(&self) -> String {
        let mut lines = vec![
            ("model", self.name.clone()),
            ("family", format!("{} ({} layout)", self.family, self.layout)),
            ("parameters", format!("{} ({})", talk::count(self.parameters), self.parameters)),
            (
                "shape",
                format!(
                    "{} layers, hidden {}, vocabulary {}, context {}, head {}",
                    self.n_layers,
                    self.hidden,
                    self.vocab,
                    self.context,
                    if self.tied_head { "tied to the embedding" } else { "of its own" }
                ),
            ),
        ];
        lines.extend(self.layers.iter().map(|group| ("layers", group.to_string())));
        lines.extend(self.stored.iter().map(|(dtype, s)| {
            let tensors = if s.tensors == 1 { "tensor" } else { "tensors" };
            ("stored", format!("{dtype}: {} {tensors}, {}", s.tensors, talk::bytes(s.bytes)))
        }));
        lines.extend(
            self.files.iter().map(|f| ("file", format!("{} ({})", f.path, talk::bytes(f.bytes)))),
        );
        let tokenizer = self.tokenizer.as_ref().map(TokenizerReport::text);
        lines.push(("tokenizer", tokenizer.unwrap_or_else(|| "none".to_owned())));
        let template = self.template.clone();
        lines.push(("template", template.unwrap_or_else(|| "none: completes text".to_owned())));
        let ids: Vec<String> = self.end_tokens.iter().map(u32::to_string).collect();
        lines.push(("end tokens", if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }));
        let run = &self.run;
        lines.push((
            "would run",
            format!(
                "on {}{}, weights in {}, cache in {}, {} read per token",
                run.device,
                if run.device.starts_with("cuda") {
                    String::new()
                } else {
                    format!(" with {} threads", run.threads)
                },
                run.format,
                run.kv,
                talk::bytes(run.weight_bytes_per_token)
            ),
        ));
        lines.extend(self.catalogue.map(catalogue::facts).unwrap_or_default());
        lines.extend(self.warnings.iter().map(|warning| ("warning", warning.clone())));
        let mut text = String::new();
        for (label, value) in lines {
            text += &format!("{label:<11} {}\n", printable(&value));
        }
        text + &self.memory_table()
    }

    /// Memory in GB: a row for each format, a column for each context.
    fn memory_table(&self) -> String {
        let mut rows: Vec<(String, Vec<&Need>)> = Vec::new();
        for need in &self.memory {
            let name = format!("{} (cache {})", need.format, need.kv);
            match rows.last_mut() {
                Some((last, needs)) if *last == name => needs.push(need),
                _ => rows.push((name, vec![need])),
            }
        }
        let free = match self.free_bytes {
            Some(free) => format!("{} are free; ! does not fit", talk::bytes(free)),
            None => "free memory is unknown".to_owned(),
        };
        let mut text = format!("\nmemory by format and context in tokens ({free}):\n{:<20}", "");
        for need in rows.first().into_iter().flat_map(|(_, needs)| needs) {
            text += &format!("{:>10} ", need.context);
        }
        for (name, needs) in rows {
            text += &format!("\n{name:<20}");
            for need in needs {
                let mark = if need.fits == Some(false) { '!' } else { ' ' };
                text += &format!("{:>10}{mark}", talk::bytes(need.total));
            }
        }
        text + "\n"
    }
}

impl TokenizerReport {
    fn new(tokenizer: &tramontane::tokenizer::Tokenizer) -> Self {
        let (kind, version) = match tokenizer.kind() {
            Kind::HuggingFace => ("tokenizer.json", None),
            Kind::Tekken { version } => ("tekken", Some(version)),
            Kind::SentencePiece { version } => ("sentencepiece", Some(version)),
        };
        Self {
            kind,
            version,
            ids: tokenizer.vocab_size(),
            bos: tokenizer.bos_id(),
            adds_bos: tokenizer.adds_bos(),
        }
    }

    fn text(&self) -> String {
        let version = self.version.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let bos = match self.bos {
            Some(id) if self.adds_bos => format!("begins with {id}"),
            Some(_) | None => "begins with no token of its own".to_owned(),
        };
        format!("{}{version}, {} ids, {bos}", self.kind, self.ids)
    }
}

/// What the model needs in each format, at the usual lengths that it can hold.
fn needs(plan: &Plan, args: &ModelArgs, free: Option<u64>) -> Vec<Need> {
    let longest = args.ctx_size.map_or(plan.context(), |n| n as usize);
    let shorter = CONTEXTS.iter().copied().filter(|context| *context < longest);
    let contexts: Vec<usize> = shorter.chain([longest]).collect();
    let mut needs = Vec::new();
    for format in Format::ALL {
        let chosen = args.kv();
        let kv = if chosen == KvFormat::Auto { plan.kv(chosen, *format) } else { chosen };
        for context in &contexts {
            let estimate = plan.estimate(*format, kv, *context);
            needs.push(Need {
                format: format.to_string(),
                kv: kv.to_string(),
                context: *context,
                estimate,
                total: estimate.total(),
                fits: free.map(|free| estimate.fits(free)),
            });
        }
    }
    needs
}
