//! Templates of chats: the text between messages, which travels with a tokenizer.

use crate::plan::Model;
use mergeql_udfs::{Error, Result};
use serde_json::Value as Json;
use std::collections::BTreeMap;

/// The template of chats that a config asks for: the one that it holds or names, or with `auto` that of most models.
pub(crate) fn template(wanted: &str, models: &[Model], notes: &mut Vec<String>) -> Result<Option<String>> {
    if wanted.contains('{') {
        return Ok(Some(wanted.to_owned()));
    }
    if let Some((_, template)) = TEMPLATES.iter().find(|(name, _)| *name == wanted) {
        return Ok(Some((*template).to_owned()));
    }
    if wanted != "auto" {
        let names: Vec<&str> = TEMPLATES.iter().map(|(name, _)| *name).collect();
        return Err(Error::invalid_argument(format!("there is no template of chats `{wanted}`")).with_help(format!(
            "there are {}; 'auto', for that of most models; or write the template itself, in Jinja",
            names.join(", ")
        )));
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for model in models {
        let folder = model.checkpoint.folder();
        let of_config = || -> Option<String> {
            let text = std::fs::read_to_string(folder.join("tokenizer_config.json")).ok()?;
            let config: Json = serde_json::from_str(&text).ok()?;
            config["chat_template"].as_str().map(str::to_owned)
        };
        if let Some(template) = std::fs::read_to_string(folder.join("chat_template.jinja")).ok().or_else(of_config) {
            *counts.entry(template).or_default() += 1;
        }
    }
    // Of two as common the one whose bytes come first, whatever the order of the models.
    let most = counts.values().max().copied();
    let found = counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(template, _)| template);
    if found.is_none() {
        notes.push("no model has a template of chats, and so the result has none".into());
    }
    Ok(found)
}

/// Templates of chats, in Jinja, by the names that configs have for them: how ChatML (OpenAI), Llama 3 (Meta), Mistral, Alpaca (Stanford) and
/// EXAONE (LG) document the text between messages.
const TEMPLATES: &[(&str, &str)] = &[
    (
        "chatml",
        r"{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    (
        "llama3",
        r"{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}{{ message['content'] | trim }}{{ '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    (
        "mistral",
        r"{{ bos_token }}{% set before = namespace(text='') %}{% for message in messages %}{% if message['role'] == 'system' %}{% set before.text = message['content'] + '\n\n' %}{% elif message['role'] == 'user' %}{{ '[INST] ' + before.text + message['content'] + ' [/INST]' }}{% set before.text = '' %}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}",
    ),
    (
        "alpaca",
        r"{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}{% if message['role'] == 'user' %}{{ '### Instruction:\n' }}{% elif message['role'] == 'assistant' %}{{ '### Response:\n' }}{% endif %}{{ message['content'] | trim }}{% endfor %}{% if add_generation_prompt %}{{ '\n\n### Response:\n' }}{% endif %}",
    ),
    (
        "exaone",
        r"{% if messages and messages[0]['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}{% for message in messages %}{{ '[|' + message['role'] + '|]' + message['content'] + ('\n' if message['role'] == 'user' else '[|endofturn|]\n') }}{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}",
    ),
];
