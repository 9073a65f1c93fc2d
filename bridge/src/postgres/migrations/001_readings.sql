-- Readings, partitioned by the day on which they were measured. Partitions, the cursor and other housekeeping lie in
-- a schema of their own, so that whoever looks for data sees only data.

CREATE TABLE {schema}.readings (
    "time" timestamptz NOT NULL,
    device text NOT NULL,
    metric text NOT NULL,
    number double precision,
    "text" text,
    unit text,
    json jsonb,
    payload bytea,
    topic text NOT NULL,
    client text NOT NULL,
    received timestamptz NOT NULL,
    journal bigint NOT NULL,
    "position" bigint NOT NULL,
    item integer NOT NULL,
    PRIMARY KEY (journal, "position", item, "time")
) PARTITION BY RANGE ("time");

CREATE INDEX readings_device_metric_time ON {schema}.readings (device, metric, "time");
CREATE INDEX readings_time ON {schema}.readings USING brin ("time");

COMMENT ON TABLE {schema}.readings IS 'What devices sent, one row per reading. A message with several values has several rows.';
COMMENT ON COLUMN {schema}.readings."time" IS 'When it was measured: the time the message says, else the time of receipt';
COMMENT ON COLUMN {schema}.readings.device IS 'Which device measured it: from the topic, else from the message, else the client identifier';
COMMENT ON COLUMN {schema}.readings.metric IS 'What was measured, such as temperature; commands begin with "command.", alerts with "alert."';
COMMENT ON COLUMN {schema}.readings.number IS 'The value, if it is a number (true is 1, false is 0)';
COMMENT ON COLUMN {schema}.readings."text" IS 'The value, if it is text; also a number too large or too long to be exact in "number"';
COMMENT ON COLUMN {schema}.readings.unit IS 'The unit of "number", as sent';
COMMENT ON COLUMN {schema}.readings.json IS 'Values that are lists, and whole messages that say more than their value';
COMMENT ON COLUMN {schema}.readings.payload IS 'The bytes of a message that is no text';
COMMENT ON COLUMN {schema}.readings.topic IS 'The MQTT topic';
COMMENT ON COLUMN {schema}.readings.client IS 'The MQTT client identifier of the publisher';
COMMENT ON COLUMN {schema}.readings.received IS 'When it was received';
COMMENT ON COLUMN {schema}.readings.journal IS 'Which journal the message lies in';
COMMENT ON COLUMN {schema}.readings."position" IS 'Where in that journal; messages received later have a higher position';
COMMENT ON COLUMN {schema}.readings.item IS 'Which reading of the message, from 0';

CREATE TABLE {internal}.readings_default PARTITION OF {schema}.readings DEFAULT;
COMMENT ON TABLE {internal}.readings_default IS 'Readings of days that have no partition';

-- Makes the partitions of these days that do not exist yet, and moves what the default partition has of them.
CREATE FUNCTION {internal}.make_partitions(first_day date, last_day date) RETURNS integer
LANGUAGE plpgsql SET timezone = 'UTC' AS $body$
DECLARE
    day date := first_day;
    made integer := 0;
    name text;
    is_in_default boolean;
BEGIN
    PERFORM pg_advisory_xact_lock({lock});
    WHILE day <= last_day LOOP
        name := 'readings_' || to_char(day, 'YYYY_MM_DD');
        -- Not to_regclass, which may answer from a cache that does not know yet what was committed a moment ago.
        IF NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname = {internal_literal} AND c.relname = name) THEN
            EXECUTE format('CREATE TABLE {internal}.%I (LIKE {schema}.readings INCLUDING DEFAULTS)', name);
            EXECUTE 'SELECT EXISTS (SELECT FROM {internal}.readings_default WHERE "time" >= $1 AND "time" < $2)'
                INTO is_in_default USING day::timestamptz, (day + 1)::timestamptz;
            IF is_in_default THEN
                EXECUTE format('WITH moved AS (DELETE FROM {internal}.readings_default'
                    ' WHERE "time" >= $1 AND "time" < $2 RETURNING *)'
                    ' INSERT INTO {internal}.%I SELECT * FROM moved', name)
                    USING day::timestamptz, (day + 1)::timestamptz;
            END IF;
            EXECUTE format('ALTER TABLE {schema}.readings ATTACH PARTITION {internal}.%I'
                ' FOR VALUES FROM (%L) TO (%L)', name, day::timestamptz, (day + 1)::timestamptz);
            made := made + 1;
        END IF;
        day := day + 1;
    END LOOP;
    RETURN made;
END
$body$;

CREATE TABLE {internal}.cursor (
    journal bigint PRIMARY KEY,
    journal_id uuid NOT NULL UNIQUE,
    "position" bigint,
    changed timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON TABLE {internal}.cursor IS 'How far each journal is stored here. Changed in the same transaction as the readings.';
COMMENT ON COLUMN {internal}.cursor."position" IS 'Every message before this position is stored';

CREATE TABLE {internal}.quarantine (
    journal bigint NOT NULL,
    "position" bigint NOT NULL,
    received timestamptz NOT NULL,
    topic text NOT NULL,
    client text NOT NULL,
    payload bytea NOT NULL,
    reason text NOT NULL,
    refused timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (journal, "position")
);
COMMENT ON TABLE {internal}.quarantine IS 'Messages whose rows the database refused, and why';

-- For each series one probe of the index on (device, metric, time), whatever the number of readings.
CREATE VIEW {schema}.latest_readings AS
WITH RECURSIVE series (device, metric) AS (
    (SELECT device, metric FROM {schema}.readings ORDER BY device, metric LIMIT 1)
    UNION ALL
    SELECT following.device, following.metric
    FROM series CROSS JOIN LATERAL (
        SELECT r.device, r.metric FROM {schema}.readings r
        WHERE (r.device, r.metric) > (series.device, series.metric)
        ORDER BY r.device, r.metric LIMIT 1
    ) following
)
SELECT latest.*
FROM series CROSS JOIN LATERAL (
    SELECT r.device, r.metric, r."time", r.number, r."text", r.unit, r.json, r.topic, r.received
    FROM {schema}.readings r
    WHERE r.device = series.device AND r.metric = series.metric
    ORDER BY r."time" DESC, r."position" DESC, r.item DESC LIMIT 1
) latest;
COMMENT ON VIEW {schema}.latest_readings IS 'The latest reading of each metric of each device';

CREATE VIEW {schema}.device_status AS
SELECT
    device,
    max(btrim("text", E' \t\r\n')) FILTER (WHERE metric = 'status') AS status,
    max("time") FILTER (WHERE metric = 'status') AS status_since,
    max(received) AS last_seen,
    count(*) FILTER (WHERE metric <> 'status') AS metrics
FROM {schema}.latest_readings
WHERE metric NOT LIKE 'command.%'
GROUP BY device;
COMMENT ON VIEW {schema}.device_status IS 'What each device last said of its status, and when it was last heard of';
COMMENT ON COLUMN {schema}.device_status.status IS 'The last text on devices/{device}/status, usually online or offline';
COMMENT ON COLUMN {schema}.device_status.status_since IS 'When it said so';
COMMENT ON COLUMN {schema}.device_status.last_seen IS 'When anything was last received from it';
COMMENT ON COLUMN {schema}.device_status.metrics IS 'How many metrics it has sent so far';
