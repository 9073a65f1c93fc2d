//! MQTT topics with fields: `commands/{device_id}/{action}`; pure.

use tidegate_broker::topic::TopicName;

/// A topic in which a level is either fixed or a field. A template that exists makes a Topic Name of any legal levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    levels: Vec<Level>,
    /// What topics of its family begin with; the whole topic if there are no fields.
    family: String,
}

/// One level of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// The same for every record.
    Fixed(String),
    /// Taken from the record.
    Field(String),
}

impl Template {
    /// Reads `text`; the error says what a template looks like.
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let levels = text.split('/').map(level).collect::<Result<Vec<_>, _>>()?;
        let example: Vec<&str> = levels
            .iter()
            .map(|level| match level {
                Level::Fixed(text) => text.as_str(),
                Level::Field(_) => "x",
            })
            .collect();
        let example = example.join("/");
        let topic = TopicName::new(&example).map_err(|why| why.to_string())?;
        if topic.is_system() {
            return Err("topics that begin with $ belong to the broker".into());
        }
        let first_field = levels.iter().position(|level| matches!(level, Level::Field(_)));
        let fixed = levels[..first_field.unwrap_or(levels.len())].iter().map(|level| match level {
            Level::Fixed(text) | Level::Field(text) => text.as_str(),
        });
        let mut family = fixed.collect::<Vec<_>>().join("/");
        if first_field.is_some_and(|at| at > 0) {
            family.push('/');
        }
        Ok(Self { levels, family })
    }

    /// Its levels, in order.
    pub(super) fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The names of its fields, in order.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        self.levels.iter().filter_map(|level| match level {
            Level::Field(name) => Some(name.as_str()),
            Level::Fixed(_) => None,
        })
    }

    /// Whether `topic` begins as every topic made from it does, whatever follows.
    pub(super) fn is_family(&self, topic: &str) -> bool {
        let has_fields = self.fields().next().is_some();
        if has_fields { topic.starts_with(&self.family) } else { topic == self.family }
    }
}

fn level(text: &str) -> Result<Level, String> {
    let Some(name) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        if text.contains(['{', '}']) {
            return Err(format!(
                "{text:?}: a field fills its level, as in commands/{{device_id}}/{{action}}"
            ));
        }
        return Ok(Level::Fixed(text.to_owned()));
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(is_name) {
        return Err(format!("{text:?}: the name of a field is made of letters, digits and _"));
    }
    Ok(Level::Field(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_fixed_levels_and_fields() {
        let template = Template::new("parking/{lot}/calibrate").unwrap();
        assert_eq!(template.fields().collect::<Vec<_>>(), ["lot"]);
        let fixed = |text: &str| Level::Fixed(text.into());
        assert_eq!(template.levels(), [fixed("parking"), Level::Field("lot".into()), fixed("calibrate")]);
    }

    #[test]
    fn a_family_is_what_stands_before_the_first_field() {
        let check = |template: &str, topic: &str, expected: bool| {
            assert_eq!(Template::new(template).unwrap().is_family(topic), expected, "{template} {topic}");
        };
        check("commands/{device_id}/{action}", "commands/valve/open", true);
        check("commands/{device_id}/{action}", "commands/valve/open/wide", true);
        check("commands/{device_id}/{action}", "commandsX/valve/open", false);
        check("commands/{device_id}/{action}", "alerts/high", false);
        check("plant/news", "plant/news", true);
        check("plant/news", "plant/news/today", false);
        check("{site}/news", "anything", true);
    }

    #[test]
    fn what_makes_no_topic_is_refused() {
        let check = |text: &str, why: &str| {
            let error = Template::new(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        };
        check("", "at least one character");
        check("a/+", "wildcards");
        check("$SYS/{x}", "belong to the broker");
        check("a/{x}y", "fills its level");
        check("a/{}", "letters, digits and _");
        check("a/{x y}", "letters, digits and _");
    }
}
