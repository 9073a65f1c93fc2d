//! Precedence, mistakes, secrets, and the shipped example.

use crate::route::{Encoding, HeaderStyle};

use super::*;

fn environment(variables: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

fn sources(file: &str, variables: &[(&str, &str)], options: &[(&str, &str, &str)]) -> Sources {
    let options = options
        .iter()
        .map(|(typed, key, value)| ((*typed).to_owned(), (*key).to_owned(), (*value).to_owned()));
    Sources {
        file: (!file.is_empty()).then(|| ("tidegate.toml".to_owned(), file.to_owned())),
        environment: environment(variables),
        options: options.collect(),
    }
}

/// Loads from a file and variables.
fn load(file: &str, variables: &[(&str, &str)]) -> Config {
    Loaded::load(&sources(file, variables, &[])).unwrap().config
}

/// Expects exactly these mistakes.
fn refused(file: &str, variables: &[(&str, &str)], expected: &[&str]) {
    let Mistakes(found) = Loaded::load(&sources(file, variables, &[])).unwrap_err();
    assert_eq!(found, expected);
}

#[test]
fn every_way_of_setting_a_key_has_its_place() {
    let platform = ("PORT", "1");
    let variable = ("TIDEGATE_HTTP_LISTEN", "0.0.0.0:3");
    let file = "[http]\nlisten = \"0.0.0.0:2\"\n";
    let option = ("--http-listen", "http.listen", "0.0.0.0:4");
    let port = |file, variables: &[_], options: &[_]| {
        let loaded = Loaded::load(&sources(file, variables, options)).unwrap();
        (loaded.config.http.listen.port(), loaded.origins.get("http.listen").map(ToString::to_string))
    };
    assert_eq!(port("", &[], &[]), (8080, None));
    assert_eq!(port("", &[platform], &[]), (1, Some("PORT".to_owned())));
    assert_eq!(port(file, &[platform], &[]), (2, Some("tidegate.toml:2".to_owned())));
    assert_eq!(port(file, &[platform, variable], &[]), (3, Some("TIDEGATE_HTTP_LISTEN".to_owned())));
    assert_eq!(port(file, &[platform, variable], &[option]), (4, Some("--http-listen".to_owned())));
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = load("", &[("TIDEGATE_HTTP_LISTEN", ""), ("PORT", ""), ("HOST", ""), ("LOG_LEVEL", "")]);
    assert_eq!(config.http.listen, everywhere(8080));
    assert_eq!(config.log.level, "info");
}

#[test]
fn host_and_port_are_those_of_http_only() {
    let config = load("", &[("HOST", "localhost"), ("PORT", "9090")]);
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:9090");
    assert_eq!(config.mqtt.listen, everywhere(1883));
    assert_eq!(load("", &[("HOST", "::")]).http.listen.to_string(), "[::]:8080");
}

#[test]
fn a_platform_variable_that_is_not_used_cannot_be_wrong() {
    load("[http]\nlisten = \"0.0.0.0:1\"", &[("HOST", "workstation"), ("PORT", "tcp://10.0.0.1:80")]);
    refused(
        "",
        &[("HOST", "workstation")],
        &["HOST: http.listen: \"workstation:8080\" is not an address: write IP:PORT, as in 0.0.0.0:1883 or \
           [::]:1883"],
    );
}

#[test]
fn platform_levels_in_any_spelling_are_levels() {
    assert_eq!(load("", &[("LOG_LEVEL", "WARNING")]).log.level, "warn");
    assert_eq!(load("[log]\nlevel = \"info,tidegate=trace\"", &[]).log.level, "info,tidegate=trace");
    assert!(Loaded::load(&sources("[log]\nlevel = \"loud\"", &[], &[])).is_err());
}

#[test]
fn all_mistakes_are_told_at_once_with_their_place_and_what_is_allowed() {
    let file = "data_dirr = \"x\"\n\n[journal]\nmax_bytes = \"8 GiBs\"\nsync = [\"always\"]\n[mqtt]\nlisten = 1883\n\
                [ftp]\nport = 1\n";
    refused(
        file,
        &[("TIDEGATE_MQTT_MAX_CONNECTIONS", "none"), ("TIDEGATE_MQTT_LISTN", "x"), ("PATH", "/bin")],
        &[
            "tidegate.toml:1: data_dirr: no such key; did you mean data_dir? `tidegate check` lists all",
            "tidegate.toml:8: ftp: no such key; `tidegate check` lists all",
            "TIDEGATE_MQTT_LISTN: no such key; did you mean TIDEGATE_MQTT_LISTEN? `tidegate check` lists all",
            "tidegate.toml:4: journal.max_bytes: \"8 GiBs\" is not a size: write bytes, or 64MiB, 1GB",
            "tidegate.toml:5: journal.sync: takes one value, not a list",
            "TIDEGATE_MQTT_MAX_CONNECTIONS: mqtt.max_connections: \"none\" is not a whole number from 1 to 10000000",
        ],
    );
}

#[test]
fn broken_toml_is_a_mistake_with_its_line_and_hides_no_other() {
    let Mistakes(found) =
        Loaded::load(&sources("[mqtt]\nlisten = \nmax_connection = 5\n", &[], &[])).unwrap_err();
    assert!(found[0].starts_with("tidegate.toml:2: not TOML: "), "{found:?}");
    assert!(found.iter().any(|each| each.contains("mqtt.max_connection: no such key")), "{found:?}");
}

#[test]
fn values_that_do_not_fit_each_other_are_refused() {
    refused(
        "[journal]\nmax_bytes = \"100MiB\"",
        &[],
        &[
            "journal.max_bytes (\"100MiB\", from tidegate.toml:2) must be at least twice journal.segment_bytes \
           (\"64MiB\", the default): whole segments are trimmed",
        ],
    );
    let small = [("TIDEGATE_JOURNAL_SEGMENT_BYTES", "1MiB"), ("TIDEGATE_MQTT_MAX_PACKET_BYTES", "2MiB")];
    let Mistakes(found) = Loaded::load(&sources("", &small, &[])).unwrap_err();
    assert!(found[0].starts_with("mqtt.max_packet_bytes (\"2MiB\", from TIDEGATE_MQTT_MAX_PACKET_BYTES)"));
}

#[test]
fn variables_that_kubernetes_adds_for_a_service_are_not_ours() {
    load(
        "",
        &[
            ("TIDEGATE_SERVICE_HOST", "10.0.0.1"),
            ("TIDEGATE_SERVICE_PORT", "1883"),
            ("TIDEGATE_SERVICE_PORT_MQTT", "1883"),
            ("TIDEGATE_PORT", "tcp://10.0.0.1:1883"),
            ("TIDEGATE_PORT_1883_TCP", "tcp://10.0.0.1:1883"),
            ("TIDEGATE_PORT_1883_TCP_ADDR", "10.0.0.1"),
            ("TIDEGATE_EDGE_PORT_8080_TCP_PROTO", "tcp"),
            ("TIDEGATE_AGENT_DEVICE_ID", "sensor01"),
        ],
    );
    assert!(Loaded::load(&sources("", &[("TIDEGATE_PORT", "1883")], &[])).is_err(), "this one is a mistake");
}

#[test]
fn variables_follow_from_sections_and_keys_and_none_stands_for_two() {
    let mut variables: Vec<String> = keys().map(|(_, variable)| variable).collect();
    for promised in
        ["DATA_DIR", "MQTT_LISTEN", "HTTP_LISTEN", "AUTH_ANONYMOUS", "JOURNAL_MAX_BYTES", "JOURNAL_SYNC"]
    {
        assert!(variables.contains(&format!("TIDEGATE_{promised}")), "{promised}");
    }
    let keys = variables.len();
    variables.sort();
    variables.dedup();
    assert_eq!(variables.len(), keys);
}

#[test]
fn the_shipped_example_is_complete_and_equal_to_the_defaults() {
    let shipped = include_str!("../../../deploy/tidegate.toml");
    assert_eq!(shipped, example(), "write it again with `tidegate check --example > deploy/tidegate.toml`");
    for (path, _) in keys() {
        let name = path.rsplit('.').next().unwrap();
        assert!(shipped.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{name} = "))));
    }
    let loaded = Loaded::load(&sources(shipped, &[], &[])).unwrap();
    assert_eq!(format!("{:?}", loaded.config), format!("{:?}", Config::default()));
}

#[test]
fn every_sample_in_the_example_is_allowed() {
    let uncommented: String = example()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.split(' ').nth(1) == Some("=") => format!("{rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    Loaded::load(&sources(&uncommented, &[], &[])).unwrap();
}

#[test]
fn what_is_in_effect_reads_back_as_the_same_configuration() {
    let variables = [("TIDEGATE_JOURNAL_SYNC", "200ms"), ("TIDEGATE_MQTT_MAX_SESSION_EXPIRY", "1h")];
    let loaded = Loaded::load(&sources("", &variables, &[])).unwrap();
    let again = Loaded::load(&sources(&loaded.effective(), &[], &[])).unwrap();
    assert_eq!(format!("{:?}", again.config), format!("{:?}", loaded.config));
    assert!(loaded.effective().contains("sync = \"200ms\"  # TIDEGATE_JOURNAL_SYNC"));
}

#[test]
fn the_platforms_database_variables_make_one_url() {
    let parts =
        [("DB_HOST", "db"), ("DB_NAME", "sensors"), ("DB_USER", "tide"), ("DB_PASSWORD", "p@ss/word:")];
    let loaded = Loaded::load(&sources("", &parts, &[])).unwrap();
    assert_eq!(loaded.config.postgres.url, "postgres://tide:p%40ss%2Fword%3A@db/sensors");
    assert_eq!(loaded.origins["postgres.url"].to_string(), "DB_HOST, DB_NAME, DB_USER, DB_PASSWORD");
    refused(
        "",
        &[("DB_HOST", "db"), ("DB_USER", "tide")],
        &["DB_HOST, DB_USER: postgres.url: DB_HOST names a database server and DB_NAME is not set"],
    );
    // A name for the database alone switches nothing on.
    assert!(!load("", &[("DB_NAME", "sensors"), ("DB_USER", "tide")]).postgres.is_on());
}

#[test]
fn a_password_in_a_file_yields_to_whatever_else_names_one() {
    let kafka = ("KAFKA_PASSWORD_FILE", "/platform");
    let check = |variables: &[_], file: Option<&str>, password: &str| {
        let kafka = load("", variables).kafka;
        assert_eq!(kafka.password_file.as_deref(), file.map(std::path::Path::new), "{variables:?}");
        assert_eq!(kafka.password, password, "{variables:?}");
    };
    check(&[kafka], Some("/platform"), "");
    check(&[kafka, ("TIDEGATE_KAFKA_PASSWORD_FILE", "/own")], Some("/own"), "");
    check(&[kafka, ("TIDEGATE_KAFKA_PASSWORD", "hunter2")], None, "hunter2");
    for (variable, table) in [
        ("TIDEGATE_KAFKA_PROPERTIES", "{ \"sasl.password\" = \"hunter2\" }"),
        ("TIDEGATE_KAFKA_PROPERTY_FILES", "{ sasl.password = \"/run/secrets/kafka\" }"),
    ] {
        check(&[kafka, (variable, table)], None, "");
        let file =
            format!("[kafka]\n{} = {table}\n", variable.trim_start_matches("TIDEGATE_KAFKA_").to_lowercase());
        assert_eq!(load(&file, &[kafka]).kafka.password_file, None, "{file}");
    }
    check(
        &[kafka, ("TIDEGATE_KAFKA_PROPERTIES", "{ \"sasl.mechanism\" = \"PLAIN\" }")],
        Some("/platform"),
        "",
    );
    let database =
        [("DB_HOST", "db"), ("DB_NAME", "sensors"), ("DB_USER", "tide"), ("DB_PASSWORD_FILE", "/platform")];
    let platform = std::path::Path::new("/platform");
    assert_eq!(load("", &database).postgres.password_file.as_deref(), Some(platform));
    let url = ("TIDEGATE_POSTGRES_URL", "postgres://tide:hunter2@db/sensors");
    assert_eq!(load("", &[&database[..], &[url]].concat()).postgres.password_file, None);
}

#[test]
fn files_with_secrets_are_asked_for_only_where_they_are_used() {
    let variables = [
        ("TIDEGATE_KAFKA_PASSWORD_FILE", "/nowhere/kafka"),
        ("TIDEGATE_KAFKA_PROPERTY_FILES", "{ \"ssl.key.password\" = \"/nowhere/key\" }"),
        ("TIDEGATE_POSTGRES_PASSWORD_FILE", "/nowhere/postgres"),
    ];
    assert_eq!(load("", &variables).check_secrets(), Ok(()));
    let on = [
        ("TIDEGATE_KAFKA_BOOTSTRAP_SERVERS", "localhost:9092"),
        ("TIDEGATE_POSTGRES_URL", "postgres://tide@db/sensors"),
    ];
    let Mistakes(found) = load("", &[variables.as_slice(), &on].concat()).check_secrets().unwrap_err();
    let missing = |key: &str, path: &str| {
        format!("{key}: {path} cannot be read: No such file or directory (os error 2)")
    };
    let expected = [
        missing("kafka.password_file", "/nowhere/kafka"),
        missing("kafka.property_files.ssl.key.password", "/nowhere/key"),
        missing("postgres.password_file", "/nowhere/postgres"),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_property_that_cannot_be_read_is_told_without_its_value() {
    for text in [
        "{ \"sasl.password\" = hunter2 }",
        "{ \"sasl.password\" = 'hunter2 }",
        "sasl.password=hunter2",
        "hunter2",
        "[\"hunter2\"]",
        "{ \"sasl.password\" = [\"hunter2\"] }",
        "{ sasl = { password = \"hunter2\" }, \"acks\" = 1 }",
    ] {
        let told =
            Loaded::load(&sources("", &[("TIDEGATE_KAFKA_PROPERTIES", text)], &[])).unwrap_err().to_string();
        assert!(!told.contains("hunter2"), "{told}");
        let file = format!("[kafka]\nproperties = {text}\n");
        let told = Loaded::load(&sources(&file, &[], &[])).unwrap_err().to_string();
        assert!(!told.contains("hunter2"), "{told}");
    }
    let loaded = Loaded::load(&sources("", &[("TIDEGATE_KAFKA_PASSWORD", "hunter2")], &[])).unwrap();
    assert!(loaded.effective().contains("\npassword = \"***\"  # TIDEGATE_KAFKA_PASSWORD"));
    assert!(!format!("{loaded:?}{}", loaded.effective()).contains("hunter2"));
}

#[test]
fn no_secret_is_ever_shown() {
    for url in [
        "postgres://tide:hunter2@db:5432/sensors",
        "postgres://tide@db/sensors?password=hunter2",
        "host=db user=tide password=hunter2",
        "postgres://db/sensors?user=tide&password=hunter2",
        "postgres://tide:hunter2/@db/sensors",
        "postgres://tide:hunter2@db@db/sensors",
        "postgres://tide:/hunter2@db/sensors",
        "hunter2",
    ] {
        let sources = sources("", &[("TIDEGATE_POSTGRES_URL", url)], &[]);
        let shown = match Loaded::load(&sources) {
            Ok(loaded) => format!("{}{loaded:?}", loaded.effective()),
            Err(mistakes) => mistakes.to_string(),
        };
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(!format!("{sources:?}").contains("hunter2"));
    }
    let loaded = Loaded::load(&sources(
        "",
        &[("TIDEGATE_POSTGRES_URL", "postgres://tide:hunter2@db:5432/sensors")],
        &[],
    ));
    assert!(loaded.unwrap().effective().contains("url = \"postgres://tide:***@db:5432/sensors\""));
    // A password is one also where it looks like a URL that holds none.
    let url = "https://hunter2/";
    let variables = [
        ("TIDEGATE_KAFKA_PASSWORD", url),
        ("TIDEGATE_KAFKA_SCHEMA_REGISTRY_PASSWORD", url),
        ("TIDEGATE_KAFKA_SCHEMA_REGISTRY_USERNAME", "tide"),
    ];
    let loaded = Loaded::load(&sources("", &variables, &[])).unwrap();
    assert!(!format!("{loaded:?}{}", loaded.effective()).contains("hunter2"), "{}", loaded.effective());
}

#[test]
fn a_mistake_that_a_part_finds_names_its_origin() {
    let Mistakes(found) = Loaded::load(&sources("[postgres]\nschema = \"Tide Gate\"", &[], &[])).unwrap_err();
    assert!(found[0].starts_with("tidegate.toml:2: postgres.schema: "), "{found:?}");
}

#[test]
fn routes_are_a_list_of_tables_in_the_file_and_in_a_variable() {
    let inline = "[kafka]\nroutes = [{ filter = \"a/#\", topic = \"a\", key = \"device\" }, { filter = \"#\", topic = \"b\" }]";
    let long = "[[kafka.routes]]\nfilter = \"a/#\"\ntopic = \"a\"\nkey = \"device\"\n[[kafka.routes]]\nfilter = \"#\"\ntopic = \"b\"";
    let variable = inline.strip_prefix("[kafka]\nroutes = ").unwrap();
    let expected = load(inline, &[]).kafka.routes;
    assert_eq!(expected.len(), 2);
    assert_eq!(load(long, &[]).kafka.routes, expected);
    assert_eq!(load("", &[("TIDEGATE_KAFKA_ROUTES", variable)]).kafka.routes, expected);
    refused(
        "[kafka]\nroutes = [{ filter = \"a/#/b\", topic = \"a\", keys = \"device\" }]",
        &[],
        &[
            "tidegate.toml:2: kafka.routes: \"keys\" is not a part of a route, as in [{ filter = \"sensors/#\", topic = \
           \"sensors\", key = \"device\" }]",
        ],
    );
}

#[test]
fn properties_of_librdkafka_add_up_and_their_secrets_stay_hidden() {
    let file = "[kafka.properties]\nsocket.timeout.ms = 61000\n\"socket.keepalive.enable\" = true\n";
    let variables = [
        ("KAFKA_USERNAME", "tide"),
        ("KAFKA_PASSWORD", "hunter2"),
        ("TIDEGATE_KAFKA_PROPERTIES", "{ \"socket.timeout.ms\" = 62000 }"),
    ];
    let loaded = Loaded::load(&sources(file, &variables, &[])).unwrap();
    let properties = &loaded.config.kafka.properties;
    let get = |name: &str| properties.get(name).map(String::as_str);
    assert_eq!(get("socket.timeout.ms"), Some("62000"), "the variable wins");
    assert_eq!(get("socket.keepalive.enable"), Some("true"));
    assert_eq!((get("sasl.username"), get("sasl.password")), (Some("tide"), Some("hunter2")));
    assert!(loaded.effective().contains("\"sasl.password\" = \"***\""), "{}", loaded.effective());
    assert!(!format!("{loaded:?}{}", loaded.effective()).contains("hunter2"));
    let Mistakes(found) = Loaded::load(&sources("[kafka.properties]\nacks = 1\n", &[], &[])).unwrap_err();
    assert!(found[0].starts_with("tidegate.toml:1: kafka.properties.acks: "), "{found:?}");
}

#[test]
fn a_route_says_what_its_topic_is_like_and_is_shown_as_it_is_read() {
    let written = "{ filter = \"health/#\", topic = \"device_data\", key = \"/deviceId\", partitions = 3, retention = \"7d\", \
                   headers = \"minimal\" }";
    let routes = load(&format!("[kafka]\nroutes = [{written}]"), &[]).kafka.routes;
    assert_eq!(
        (routes[0].partitions, routes[0].retention_ms, routes[0].headers),
        (Some(3), Some(7 * 86_400_000), Some(HeaderStyle::Minimal))
    );
    let loaded = Loaded::load(&sources(&format!("[kafka]\nroutes = [{written}]"), &[], &[])).unwrap();
    assert!(loaded.effective().contains(written), "{}", loaded.effective());
    let forever = "{ filter = \"a\", topic = \"a\", partitions = \"default\", retention = \"forever\", headers = \"user\" }";
    let routes = load("", &[("TIDEGATE_KAFKA_ROUTES", forever)]).kafka.routes;
    assert_eq!(
        (routes[0].partitions, routes[0].retention_ms, routes[0].headers),
        (Some(-1), Some(-1), Some(HeaderStyle::Minimal))
    );
    refused(
        "[kafka]\nroutes = [{ filter = \"a\", topic = \"a\", key = \"deviceId\" }]",
        &[],
        &[
            "tidegate.toml:2: kafka.routes: \"deviceId\" is not a key: write device, client, topic, level:2, /deviceId (a \
           JSON pointer into the payload) or none",
        ],
    );
    refused(
        "[kafka]\nroutes = [{ filter = \"a\", topic = \"a\", partitions = 0 }]",
        &[],
        &["tidegate.toml:2: kafka.routes: \"0\" is not a whole number from 1 to 10000, or default"],
    );
}

#[test]
fn the_routes_for_health_devices_can_be_used() {
    let config =
        load(include_str!("../../../deploy/health.toml"), &[("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092")]);
    assert_eq!(config.kafka.routes.len(), 12);
    assert_eq!(config.kafka.bootstrap_servers, "kafka:9092");
    let registry = ("KAFKA_SCHEMA_REGISTRY_URL", "http://registry:1");
    let config = load(include_str!("../../../deploy/health-avro.toml"), &[]);
    assert_eq!(config.kafka.schema_registry.url, "http://schema-registry:8081");
    assert_eq!(config.kafka.routes[0].encoding, Some(Encoding::Avro));
    assert_eq!(load("", &[registry]).kafka.schema_registry.url, "http://registry:1");
}
