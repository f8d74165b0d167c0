//! The names of tensors in published checkpoints, as they are and as they were.

use crate::model::{ModelConfig, ModelType};

/// BERT's name for a part of a layer, and DistilBERT's.
const DISTILBERT: [(&str, &str); 9] = [
    ("attention.self.query", "attention.q_lin"),
    ("attention.self.key", "attention.k_lin"),
    ("attention.self.value", "attention.v_lin"),
    ("attention.output.dense", "attention.out_lin"),
    ("attention.output.LayerNorm", "sa_layer_norm"),
    ("intermediate.dense", "ffn.lin1"),
    ("output.dense", "ffn.lin2"),
    ("output.LayerNorm", "output_layer_norm"),
    ("pooler.dense", "pre_classifier"),
];

/// Heads and buffers that published folders hold beside what is asked for, and that change nothing.
const LEFT_OVER: [&str; 13] = [
    "cls.",
    "lm_head.",
    "qa_outputs.",
    "pooler.",
    "discriminator_predictions.",
    "generator_predictions.",
    "generator_lm_head.",
    "vocab_transform.",
    "vocab_layer_norm.",
    "vocab_projector.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "embeddings.position_embeddings.position_ids",
];

/// The name under which a [`ModelConfig`] knows the tensor that a checkpoint calls `name`.
pub(super) fn canonical(name: &str, config: &ModelConfig) -> String {
    let mut name = name.strip_prefix("module.").unwrap_or(name);
    for model_type in ModelType::ALL {
        if let Some(rest) = name.strip_prefix(model_type.as_str()).and_then(|r| r.strip_prefix('.')) {
            name = rest;
            break;
        }
    }
    let mut name = match name.rsplit_once('.') {
        Some((parent, "gamma")) => format!("{parent}.weight"),
        Some((parent, "beta")) => format!("{parent}.bias"),
        _ => name.to_owned(),
    };
    if config.model_type == ModelType::DistilBert {
        if let Some((part, rest)) = name.strip_prefix("transformer.layer.").and_then(|rest| rest.split_once('.')) {
            let rest = replaced_prefix(rest, |(bert, distilbert)| (distilbert, bert));
            name = format!("encoder.layer.{part}.{rest}");
        } else {
            name = replaced_prefix(&name, |(bert, distilbert)| (distilbert, bert));
        }
    } else if config.has_pooler() && has_nested_classifier(config.model_type) {
        for (bert, nested) in NESTED_CLASSIFIER {
            if let Some(rest) = name.strip_prefix(nested) {
                name = format!("{bert}{rest}");
                break;
            }
        }
    }
    name
}

/// The name under which transformers looks for a tensor of [`ModelConfig::tensors`].
pub(super) fn published(name: &str, config: &ModelConfig) -> String {
    let is_head = name.starts_with("classifier.") || name.starts_with("pooler.");
    let mut published = name.to_owned();
    match config.model_type {
        ModelType::DistilBert => {
            published = match name.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) {
                Some((part, rest)) => {
                    let rest = replaced_prefix(rest, |pair| pair);
                    format!("transformer.layer.{part}.{rest}")
                }
                None => replaced_prefix(name, |pair| pair),
            };
        }
        model_type if config.has_pooler() && has_nested_classifier(model_type) => {
            for (bert, nested) in NESTED_CLASSIFIER {
                if let Some(rest) = name.strip_prefix(bert) {
                    published = format!("{nested}{rest}");
                    break;
                }
            }
        }
        _ => {}
    }
    // A bare encoder's folder has no prefix, and BERT's pooler belongs to its encoder.
    let in_encoder = !is_head || (config.model_type == ModelType::Bert && name.starts_with("pooler."));
    if in_encoder && config.task != crate::model::Task::Encoder {
        format!("{}.{published}", config.model_type.as_str())
    } else {
        published
    }
}

/// Whether a tensor that is not wanted is one of those that folders usually hold beside the wanted ones.
pub(super) fn is_left_over(canonical: &str) -> bool {
    LEFT_OVER.iter().any(|prefix| canonical.starts_with(prefix))
}

/// The head over the first token where it is one module of two layers.
const NESTED_CLASSIFIER: [(&str, &str); 2] =
    [("pooler.dense.", "classifier.dense."), ("classifier.", "classifier.out_proj.")];

fn has_nested_classifier(model_type: ModelType) -> bool {
    matches!(model_type, ModelType::Roberta | ModelType::Electra)
}

/// `name` with a prefix of [`DISTILBERT`] exchanged; `order` says which of a pair is looked for.
fn replaced_prefix<'a>(name: &str, order: impl Fn((&'a str, &'a str)) -> (&'a str, &'a str)) -> String {
    for pair in DISTILBERT {
        let (from, to) = order(pair);
        if let Some(rest) = name.strip_prefix(from).filter(|rest| rest.starts_with('.')) {
            return format!("{to}{rest}");
        }
    }
    name.to_owned()
}
