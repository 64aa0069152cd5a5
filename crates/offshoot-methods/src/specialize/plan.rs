//! Which way to a small model of a domain is worth it, under four budgets and for so many domains.
//!
//! The rules are the paper's (arXiv 2402.01093 v2): limits on inference, pretraining and specialization decide which method fits (section 1,
//! figure 1), and over N domains it costs `C_total(N) = C_generic + N * C_spec` (equation 1). Which of those that fit is the better one is
//! ranked by the perplexities that the paper gives ([`published`]): a prior, not a measurement of what is planned here.

use std::cmp::Ordering;
use std::fmt;

use super::costs::{BILLION, Costs, Dense, Experts, at_tokens};
use super::published::{self, Published};
use offshoot_family::quantity::{grouped, proportion};

/// Most hours, tokens, parameters and domains of a plan: far more than there are, and few enough to calculate with.
const MOST: f64 = 1e15;
/// GPU-hours that table 3 says the paper spent at most in pretraining of the small model.
const SLM_LIMIT: f64 = 530.0;
/// The same of SLM-pn, SLM-mix and the large model.
const LIMIT: f64 = 650.0;
/// The same of SLM-d, its teacher's included.
const SLM_D_LIMIT: f64 = 1850.0;
/// Hours a domain of SLM-is, tuning included (table 3).
const SLM_IS_LIMIT: f64 = 130.0;
/// GPU-hours of a teacher from which its student clearly beats the plain small model (figure 5).
const TEACHER_FROM: f64 = 276.0;
/// Tokens a parameter below which little is learnt: half of what is worth its compute (20, Hoffmann et al. 2022).
const TOKENS_A_PARAMETER: f64 = 10.0;
/// Share of the shared pretraining that importance sampling needs for a domain to be ranked before it. The paper has 130 against at most 650
/// hours, and draws it up to 100 of them.
const SLM_IS_SHARE: f64 = published::IS_FROM / LIMIT;

/// A way to a model of a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// A small model, pretrained on generic text and tuned.
    Slm,
    /// A small model for each domain, pretrained on generic text that is resampled to look like it, and tuned.
    SlmIs,
    /// A hard mixture: one small model a cluster of generic text, of which one is tuned.
    SlmMix,
    /// A projected network: small models of all clusters out of one set of weights, of which one is tuned.
    SlmPn,
    /// A small model, tuned with a large one as its teacher.
    SlmD,
    /// A large model, pretrained on generic text and tuned.
    Llm,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Slm, Self::SlmIs, Self::SlmMix, Self::SlmPn, Self::SlmD, Self::Llm];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Slm => "slm",
            Self::SlmIs => "slm-is",
            Self::SlmMix => "slm-mix",
            Self::SlmPn => "slm-pn",
            Self::SlmD => "slm-d",
            Self::Llm => "llm",
        }
    }

    /// What it is, in words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Slm => "a small model, pretrained once and tuned for each domain",
            Self::SlmIs => {
                "a small model for each domain, pretrained on generic text that is resampled by the domain's clusters, then tuned"
            }
            Self::SlmMix => "one small expert a cluster of generic text; for each domain one of them is tuned",
            Self::SlmPn => {
                "small experts projected out of one large set of weights; for each domain one of them is tuned"
            }
            Self::SlmD => "a small model, tuned for each domain with a large one as its teacher",
            Self::Llm => "a large model, pretrained once and tuned for each domain",
        }
    }

    /// Whether one pretraining serves all domains.
    fn shares(self) -> bool {
        self != Self::SlmIs
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a user has (section 1 of the paper), in the hours of a table of costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budgets {
    /// Most parameters of the model that is used.
    pub inference: u64,
    /// Hours before the domains are known, for all of them together.
    pub pretraining_hours: f64,
    /// Hours for each domain, once it is known.
    pub specialization_hours: f64,
    /// Tokens of one domain's text.
    pub tokens: u64,
    /// Domains.
    pub domains: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq)]
pub enum PlanError {
    /// A budget that nobody has.
    Budget {
        /// The option, as it is typed.
        option: &'static str,
        /// What is wrong with its value.
        reason: String,
        /// What would be right.
        hint: &'static str,
    },
    /// No method fits.
    NothingFits {
        /// Why not, of each.
        reasons: Vec<(Method, String)>,
        /// What would have to change.
        hint: String,
    },
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget { option, reason, .. } => write!(f, "{option}: {reason}"),
            Self::NothingFits { reasons, .. } => {
                write!(f, "no method fits these budgets")?;
                reasons
                    .iter()
                    .try_for_each(|(method, reason)| write!(f, "\n  {method:>7}  {reason}"))
            }
        }
    }
}

impl std::error::Error for PlanError {}

impl PlanError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Budget { hint, .. } => Some((*hint).into()),
            Self::NothingFits { hint, .. } => Some(hint.clone()),
        }
    }
}

impl Budgets {
    /// Whether every budget is one that somebody could have.
    ///
    /// # Errors
    /// Names the option of the first that is zero, negative or absurd.
    pub fn check(&self) -> Result<(), PlanError> {
        let hours = |option, hours: f64, least: f64, hint| {
            if hours.is_finite() && hours >= least && hours <= MOST && (hours > 0.0 || least == 0.0) {
                return Ok(());
            }
            let reason = if hours > MOST {
                format!("{hours} hours are more than there are")
            } else {
                format!("{hours} hours leave nothing to plan")
            };
            Err(PlanError::Budget { option, reason, hint })
        };
        let count = |option, count: u64, hint| {
            if count > 0 && count as f64 <= MOST {
                return Ok(());
            }
            let reason = if count == 0 {
                "0 leaves nothing to plan".into()
            } else {
                format!("{} is more than there are", grouped(count))
            };
            Err(PlanError::Budget { option, reason, hint })
        };
        count(
            "--inference",
            self.inference,
            "give the most parameters of the model that is used, such as 126M",
        )?;
        let pretraining = "give the hours for pretraining before the domains are known; 0 for none";
        hours("--pretraining-hours", self.pretraining_hours, 0.0, pretraining)?;
        let specialization = "give the hours for one domain; every method tunes on its text";
        hours(
            "--specialization-hours",
            self.specialization_hours,
            f64::MIN_POSITIVE,
            specialization,
        )?;
        count(
            "--tokens",
            self.tokens,
            "give the tokens of one domain's text, such as 1M",
        )?;
        count("--domains", self.domains, "give the number of domains, 1 or more")
    }
}

/// Hours of each phase.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Hours {
    /// Embedding and clustering of generic text, once.
    pub clustering: f64,
    /// Training on generic text that all domains share, once; a teacher's included.
    pub pretraining: f64,
    /// Training for one domain, once it is known; of importance sampling its pretraining too.
    pub specialization: f64,
}

impl Hours {
    /// Hours over so many domains: equation 1 of the paper, with clustering in `C_generic`.
    pub fn total(&self, domains: f64) -> f64 {
        self.clustering + self.pretraining + domains * self.specialization
    }
}

/// One method under the budgets.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The method.
    pub method: Method,
    /// Parameters in pretraining, of all experts together; of a student its teacher's too.
    pub trained: u64,
    /// Parameters of the model that is used.
    pub used: u64,
    /// Hours of each phase: as many as the budgets allow, and no more than the paper's own in proportion.
    pub hours: Hours,
    /// Hours to use it on a billion tokens.
    pub inference: f64,
    /// Tokens that it is pretrained on.
    pub pretraining_tokens: f64,
    /// The paper's perplexity where it has one: a prior of the order of methods, not measured here.
    pub perplexity: Option<Published>,
    /// Why it does not fit the budgets, if it does not.
    pub misfit: Option<String>,
    /// Its pretraining as hours of the paper: the same tokens a parameter of the model that is used.
    equivalent: f64,
    /// Share of the paper's tuning that the hours of a domain allow.
    tuned: f64,
}

impl Candidate {
    /// Tokens of pretraining a parameter that is used.
    pub fn tokens_a_parameter(&self) -> f64 {
        self.pretraining_tokens / self.used as f64
    }
}

/// A decision.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The method to take.
    pub chosen: Candidate,
    /// The others in the order of preference, those that do not fit last, each with why it lost.
    pub others: Vec<(Candidate, String)>,
    /// The number of domains at which importance sampling costs as much as the best method that shares its pretraining; none where
    /// one of the two cannot be.
    pub break_even: Option<BreakEven>,
    /// What should be known with it.
    pub notes: Vec<String>,
}

/// Where pretraining for each domain costs as much as one that is shared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakEven {
    /// Domains; with fewer, pretraining for each of them costs less.
    pub domains: f64,
    /// The method that shares its pretraining.
    pub shared: Method,
    /// Its hours before the domains are known.
    pub generic: f64,
    /// Hours of importance sampling for a domain.
    pub each: f64,
}

/// Decides.
///
/// # Errors
/// If a budget is zero or absurd, or no method fits.
pub fn plan(budgets: &Budgets, costs: &Costs) -> Result<Decision, PlanError> {
    budgets.check()?;
    let (mut fitting, misfits): (Vec<Candidate>, Vec<Candidate>) = Method::ALL
        .into_iter()
        .map(|method| candidate(method, budgets, costs))
        .partition(|candidate| candidate.misfit.is_none());
    if fitting.is_empty() {
        return Err(nothing_fits(budgets, costs, misfits));
    }
    rank(&mut fitting);
    let break_even = break_even(&fitting, &misfits);
    // One pretraining a domain is given up where it is dearer than one for all, though each domain's budget allows it (figure 6).
    let mut dearer = None;
    if fitting[0].method == Method::SlmIs && budgets.domains > 1 {
        let domains = budgets.domains as f64;
        let total = fitting[0].hours.total(domains);
        if let Some(rival) = fitting.iter().skip(1).position(|c| c.method.shares() && learns(c)) {
            let rival = rival + 1;
            if fitting[rival].hours.total(domains) < total {
                dearer = Some(fitting[rival].hours.total(domains));
                fitting.swap(0, rival);
                fitting[1..].sort_by_key(|c| c.method != Method::SlmIs);
            }
        }
    }
    let chosen = fitting.remove(0);
    let notes = notes(&chosen, budgets, costs);
    let lost = |loser: Candidate| {
        let reason = match (&loser.misfit, dearer) {
            (Some(reason), _) => reason.clone(),
            (None, Some(less)) if loser.method == Method::SlmIs => too_dear(&loser, &chosen, budgets, less, break_even),
            _ => worse(&loser, &chosen),
        };
        (loser, reason)
    };
    let others = fitting.into_iter().chain(misfits).map(lost).collect();
    Ok(Decision {
        chosen,
        others,
        break_even,
        notes,
    })
}

/// Whether it is trained on enough to count as a rival.
fn learns(candidate: &Candidate) -> bool {
    candidate.tokens_a_parameter() >= TOKENS_A_PARAMETER
}

/// What a method takes by a table of costs, whatever the budgets.
#[derive(Clone, Copy)]
struct Terms {
    /// Parameters in pretraining.
    trained: u64,
    /// The plain network that is tuned and used.
    used: Dense,
    /// Hours of pretraining for a billion tokens.
    rate: f64,
    /// Hours of clustering for as many.
    clustering: f64,
    /// Hours here for one of the paper's, at as many tokens a parameter.
    scale: f64,
    /// The paper's most hours of pretraining.
    limit: f64,
    /// Hours of the paper's tuning on a domain.
    tuning: f64,
    /// Hours of tuning for one pass over its tokens.
    pass: f64,
}

impl Terms {
    fn of(method: Method, costs: &Costs, tokens: f64) -> Self {
        let (paper, tuning) = (Costs::paper(), costs.tuning());
        let (small, large) = (costs.small, costs.large);
        let larger = small.parameters as f64 / paper.small.parameters as f64;
        let plain = Self {
            trained: small.parameters,
            used: small,
            rate: small.training,
            clustering: 0.0,
            scale: larger * small.training / paper.small.training,
            limit: SLM_LIMIT,
            tuning: at_tokens(tuning.small, tokens),
            pass: small.training * tokens / BILLION,
        };
        let of_experts = |experts: Experts, papers: Experts| Self {
            trained: experts.parameters,
            used: small,
            rate: experts.training,
            clustering: costs.clustering,
            scale: larger * experts.training / papers.training,
            limit: LIMIT,
            tuning: plain.tuning,
            pass: plain.pass,
        };
        let large_scale =
            large.training / paper.large.training * (large.parameters as f64 / paper.large.parameters as f64);
        match method {
            Method::Slm => plain,
            Method::SlmIs => Self {
                clustering: costs.clustering,
                limit: SLM_IS_LIMIT,
                ..plain
            },
            Method::SlmMix => of_experts(costs.mixture, paper.mixture),
            Method::SlmPn => of_experts(costs.projected, paper.projected),
            // Table 3 has teacher and student together; the student's are those of the small model.
            Method::SlmD => Self {
                trained: small.parameters.saturating_add(large.parameters),
                scale: (plain.scale * SLM_LIMIT + large_scale * (SLM_D_LIMIT - SLM_LIMIT)) / SLM_D_LIMIT,
                limit: SLM_D_LIMIT,
                tuning: at_tokens(tuning.distilled, tokens),
                pass: (large.training + large.inference + small.training) * tokens / BILLION,
                ..plain
            },
            Method::Llm => Self {
                trained: large.parameters,
                used: large,
                rate: large.training,
                clustering: 0.0,
                scale: large_scale,
                limit: LIMIT,
                tuning: at_tokens(tuning.large, tokens),
                pass: large.training * tokens / BILLION,
            },
        }
    }
}

/// What a method would be, cost and promise within the budgets.
fn candidate(method: Method, budgets: &Budgets, costs: &Costs) -> Candidate {
    let tokens = budgets.tokens as f64;
    let terms = Terms::of(method, costs, tokens);
    let (rate, clustering, most) = (terms.rate, terms.clustering, terms.limit * terms.scale);
    let given = budgets.pretraining_hours;
    // The paper's tuning, or as much of it as the hours allow; of importance sampling at most half of them.
    let room = match method {
        Method::SlmIs => budgets.specialization_hours / 2.0,
        _ => budgets.specialization_hours,
    };
    let tuned = terms.tuning.min(room);
    let mut hours = Hours {
        specialization: tuned,
        ..Hours::default()
    };
    let mut misfit = None;
    // Hours in which the model that is used, or the experts it is of, are pretrained; clustering embeds as many tokens.
    let training = match method {
        Method::SlmIs => {
            let most = (most - tuned).max(most / 2.0);
            let training = ((budgets.specialization_hours - tuned) * rate / (rate + clustering)).clamp(0.0, most);
            hours.specialization = tuned + training;
            training
        }
        Method::SlmD => {
            hours.pretraining = given.min(most);
            let alone = Terms::of(Method::Slm, costs, tokens);
            let teacher_scale = Terms::of(Method::Llm, costs, tokens).scale;
            let student = hours.pretraining * alone.limit * alone.scale / most;
            let teacher = hours.pretraining - student;
            if teacher < TEACHER_FROM * teacher_scale {
                misfit = Some(format!(
                    "its teacher alone needs {} hours of pretraining to be of use (figure 5), and {} of {} are left for it beside its student",
                    told(TEACHER_FROM * teacher_scale),
                    told(teacher),
                    told(given)
                ));
            }
            student
        }
        _ => {
            hours.pretraining = (given * rate / (rate + clustering)).min(most);
            hours.pretraining
        }
    };
    let billions = training / rate;
    hours.clustering = billions * clustering;
    if terms.used.parameters > budgets.inference {
        misfit = Some(format!(
            "{} parameters to use, more than {}",
            count(terms.used.parameters),
            count(budgets.inference)
        ));
    } else if method.shares() && given == 0.0 {
        misfit = Some("it needs pretraining before the domains are known, and there are no hours for it".into());
    } else if tuned < terms.pass {
        misfit = Some(format!(
            "one pass of tuning over {} tokens takes {} hours, and {} of a domain are given{}",
            count(budgets.tokens),
            told(terms.pass),
            told(budgets.specialization_hours),
            match method {
                Method::SlmIs => ", half of them for pretraining",
                _ => "",
            }
        ));
    }
    let equivalent = match method {
        Method::SlmIs => hours.specialization,
        _ => hours.pretraining,
    } / terms.scale;
    Candidate {
        method,
        trained: terms.trained,
        used: terms.used.parameters,
        hours,
        inference: terms.used.inference,
        pretraining_tokens: billions * BILLION,
        perplexity: published::perplexity(method, equivalent, tokens),
        misfit,
        equivalent,
        tuned: tuned / terms.tuning,
    }
}

/// Sorts those that fit, the best first.
fn rank(fitting: &mut Vec<Candidate>) {
    // By the tables; a method without a number comes behind those that have one.
    let value = |c: &Candidate| c.perplexity.map_or(f64::INFINITY, |p| p.value);
    let mut sampled = None;
    let mut large = None;
    let mut shared = Vec::new();
    for candidate in fitting.drain(..) {
        match candidate.method {
            Method::SlmIs => sampled = Some(candidate),
            Method::Llm => large = Some(candidate),
            _ => shared.push(candidate),
        }
    }
    shared.sort_by(|a, b| value(a).partial_cmp(&value(b)).unwrap_or(Ordering::Equal));
    if let Some(sampled) = sampled {
        let enough = shared.first().is_none_or(|best| is_enough(&sampled, best));
        shared.insert(if enough { 0 } else { 1 }, sampled);
    }
    if let Some(large) = large {
        // Figure 1 asks for the inference budget first.
        let place = if learns(&large) { 0 } else { shared.len() };
        shared.insert(place, large);
    }
    *fitting = shared;
}

/// Whether importance sampling is trained for long enough to be the better one of the two.
fn is_enough(sampled: &Candidate, shared: &Candidate) -> bool {
    sampled.equivalent >= published::IS_FROM || sampled.equivalent >= SLM_IS_SHARE * shared.equivalent
}

/// Domains at which importance sampling and the best method that shares its pretraining cost the same.
fn break_even(fitting: &[Candidate], misfits: &[Candidate]) -> Option<BreakEven> {
    // One that the budgets do not allow is compared by what it would cost, if it has anything to train.
    let sampled = fitting.iter().chain(misfits).find(|c| c.method == Method::SlmIs)?;
    let shared = fitting.iter().find(|c| c.method.shares() && c.method != Method::Llm)?;
    let generic = |c: &Candidate| c.hours.clustering + c.hours.pretraining;
    let more = sampled.hours.specialization - shared.hours.specialization;
    let domains = (generic(shared) - generic(sampled)) / more;
    (sampled.pretraining_tokens > 0.0 && more > 0.0 && domains.is_finite() && domains > 0.0).then_some(BreakEven {
        domains,
        shared: shared.method,
        generic: generic(shared),
        each: sampled.hours.specialization,
    })
}

/// Why importance sampling lost on its hours.
fn too_dear(loser: &Candidate, chosen: &Candidate, budgets: &Budgets, less: f64, even: Option<BreakEven>) -> String {
    let from = even.map_or(String::new(), |even| {
        format!(", and is dearer from {:.1} domains on", even.domains)
    });
    let better = loser
        .perplexity
        .map_or("its perplexity would be lower (figure 4)".into(), |p| {
            format!("its perplexity would be lower, about {}", proportion(p.value, 4))
        });
    format!(
        "{} hours for each of {} domains are {} in all, where {} takes {}{from}; {better}",
        told(loser.hours.specialization),
        grouped(budgets.domains),
        told(loser.hours.total(budgets.domains as f64)),
        chosen.method,
        told(less)
    )
}

/// Why one that fits lost on quality.
fn worse(loser: &Candidate, chosen: &Candidate) -> String {
    let against = |value: f64| match chosen.perplexity {
        Some(p) if p.bound => format!(
            "{} against about {} of {}",
            proportion(value, 4),
            proportion(p.value, 4),
            chosen.method
        ),
        Some(p) => format!(
            "{} against {} of {}",
            proportion(value, 4),
            proportion(p.value, 4),
            chosen.method
        ),
        None => format!("{} is better by its text (figure 4)", chosen.method),
    };
    match (loser.method, chosen.method) {
        (Method::SlmD, _) => format!(
            "counting its teacher's, {} hours of pretraining: at equal cost slm-pn and slm-mix are better (figure 5); the paper spends {} on \
             the two (table 3)",
            told(loser.hours.pretraining),
            grouped(SLM_D_LIMIT as u64)
        ),
        (Method::SlmIs, Method::Llm) => format!(
            "the large model is within the inference budget, and comes first (figure 1); this one has a {}th of its parameters, at {} hours for \
             each domain",
            (chosen.used as f64 / loser.used as f64).round(),
            told(loser.hours.specialization)
        ),
        (Method::SlmIs, _) => format!(
            "{} hours of pretraining a domain are too few against {} shared ones of {}",
            told(loser.hours.specialization),
            told(chosen.hours.pretraining),
            chosen.method
        ),
        (Method::Llm, _) => format!(
            "{:.2} tokens a parameter in {} hours of pretraining are too few for its size",
            loser.tokens_a_parameter(),
            told(loser.hours.pretraining)
        ),
        _ => match loser.perplexity {
            Some(p) if chosen.perplexity.is_some() => {
                format!("the paper's perplexity is worse at these hours: {}", against(p.value))
            }
            _ if chosen.method == Method::SlmIs => {
                "pretraining for the domain gives the better small model (figure 4)".into()
            }
            _ => format!("{} is better at these hours", chosen.method),
        },
    }
}

/// What should be known with a choice.
fn notes(chosen: &Candidate, budgets: &Budgets, costs: &Costs) -> Vec<String> {
    let mut notes = Vec::new();
    match chosen.perplexity {
        Some(p) if p.inside => {}
        Some(_) => notes.push(
            "these hours and tokens lie outside of what the paper measured (100 to 650 GPU-hours, 1M to 64M tokens): methods are ranked as at the \
             nearest end"
                .into(),
        ),
        None => notes.push(format!(
            "the paper gives no perplexity of {} here: it is ranked by what the text says",
            chosen.method
        )),
    }
    let ratio = chosen.tokens_a_parameter();
    if ratio < TOKENS_A_PARAMETER {
        let hours = match chosen.method {
            Method::SlmIs => budgets.specialization_hours,
            _ => budgets.pretraining_hours,
        };
        let mut note = format!(
            "{} tokens of pretraining are {} a parameter; below {TOKENS_A_PARAMETER} little is learnt (20 are worth their compute, Hoffmann et al. \
             2022)",
            count(chosen.pretraining_tokens as u64),
            proportion(ratio, 2),
        );
        // Tokens go up and hours a token go down with the size.
        let size = chosen.used as f64 * (ratio / TOKENS_A_PARAMETER).sqrt();
        if size >= 1e4 {
            note.push_str(&format!(
                ": {} hours would do for {} parameters",
                told(hours),
                count(size as u64)
            ));
        }
        notes.push(note);
    }
    if chosen.tuned < 1.0 {
        notes.push(format!(
            "the hours of a domain allow {} % of the paper's tuning, which ends at the best validation loss or after 9 passes over 1M tokens and \
             4 over 64M",
            proportion(chosen.tuned * 100.0, 2)
        ));
    }
    if costs.clustering == 0.0 && matches!(chosen.method, Method::SlmIs | Method::SlmMix | Method::SlmPn) {
        notes.push("clustering is not counted in these costs".into());
    }
    notes
}

/// What would have to change for a method to fit.
fn nothing_fits(budgets: &Budgets, costs: &Costs, misfits: Vec<Candidate>) -> PlanError {
    let small = costs.small.parameters;
    let least = budgets.tokens as f64 / BILLION * costs.small.training;
    let hint = if small > budgets.inference {
        format!(
            "the smallest model that these costs are of has {} parameters: give --inference {} or more, or other --costs",
            count(small),
            count(small)
        )
    } else if budgets.specialization_hours <= least {
        format!(
            "one pass over a domain's text takes {} hours, and the paper's tuning {}: give more --specialization-hours, or plan for a smaller \
             model",
            told(least),
            told(at_tokens(costs.tuning().small, budgets.tokens as f64))
        )
    } else {
        "give --pretraining-hours, or more --specialization-hours".into()
    };
    let reason = |c: Candidate| (c.method, c.misfit.unwrap_or_default());
    PlanError::NothingFits {
        reasons: misfits.into_iter().map(reason).collect(),
        hint,
    }
}

/// Hours as people read them: `600.0`, `6,500.0`, `0.017`.
pub fn told(hours: f64) -> String {
    if (99.95..1e7).contains(&hours) {
        // One decimal, whatever the size: sums over domains differ in it.
        let tenths = (hours * 10.0).round() as u64;
        return format!("{}.{}", grouped(tenths / 10), tenths % 10);
    }
    if hours == 0.0 {
        return "0".into();
    }
    proportion(hours, 3)
}

/// A count as people read it: `126M`, `1.42G`, `8`.
pub fn count(number: u64) -> String {
    let value = number as f64;
    for (limit, suffix) in [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= limit * 0.9995 {
            let text = format!("{:.2}", value / limit);
            let short = if value / limit >= 99.95 {
                format!("{:.0}", value / limit)
            } else {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            };
            return format!("{short}{suffix}");
        }
    }
    number.to_string()
}

#[cfg(test)]
mod tests;
