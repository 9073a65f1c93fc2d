-- Retention, rollups per minute and per hour, alerts, and comments on everything.

-- Makes the partitions of these days that do not exist yet, and moves what the default partition has of them.
CREATE OR REPLACE FUNCTION {internal}.make_partitions(first_day date, last_day date) RETURNS integer
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
            EXECUTE format('CREATE TABLE {internal}.%I (LIKE {schema}.readings INCLUDING DEFAULTS INCLUDING COMMENTS)', name);
            EXECUTE format('COMMENT ON TABLE {internal}.%I IS %L', name, 'Readings of ' || day || ' (UTC)');
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

-- Partitions that exist already get the same comments.
DO $body$
DECLARE
    part record;
BEGIN
    FOR part IN SELECT c.oid, c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            WHERE i.inhparent = '{schema}.readings'::regclass LOOP
        IF part.relname <> 'readings_default' THEN
            EXECUTE format('COMMENT ON TABLE {internal}.%I IS %L', part.relname,
                'Readings of ' || replace(right(part.relname, 10), '_', '-') || ' (UTC)');
        END IF;
        EXECUTE (SELECT string_agg(format('COMMENT ON COLUMN {internal}.%I.%I IS %L', part.relname, attname,
                col_description(attrelid, attnum)), '; ')
            FROM pg_attribute WHERE attrelid = '{schema}.readings'::regclass AND attnum > 0 AND NOT attisdropped);
    END LOOP;
END
$body$;

-- Drops the oldest partition all of whose day is before the given one, and says whether there was one. Only one
-- instance does so at a time; another that comes meanwhile finds nothing to do.
CREATE FUNCTION {internal}.drop_partition_before(day date) RETURNS integer
LANGUAGE plpgsql SET timezone = 'UTC' AS $body$
DECLARE
    name text;
BEGIN
    IF NOT pg_try_advisory_xact_lock({lock}) THEN
        RETURN 0;
    END IF;
    SELECT c.relname INTO name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = {internal_literal} AND c.relkind = 'r'
            AND c.relname ~ '^readings_\d{4}_\d\d_\d\d$'
            AND c.relname < 'readings_' || to_char(day, 'YYYY_MM_DD')
        ORDER BY c.relname LIMIT 1;
    IF name IS NULL THEN
        RETURN 0;
    END IF;
    EXECUTE format('ALTER TABLE {schema}.readings DETACH PARTITION {internal}.%I', name);
    EXECUTE format('DROP TABLE {internal}.%I', name);
    RETURN 1;
END
$body$;
COMMENT ON FUNCTION {internal}.drop_partition_before(date) IS 'Drops the oldest partition of readings before a day; 1 if there was one';
COMMENT ON FUNCTION {internal}.make_partitions(date, date) IS 'Makes the partitions of readings for these days; how many were missing';

-- What was numbers, per minute. Changed in the same transaction as the readings, so they always agree; only who
-- deletes or changes readings by hand has to do the same here.
CREATE TABLE {schema}.readings_per_minute (
    device text NOT NULL,
    metric text NOT NULL,
    "time" timestamptz NOT NULL,
    count bigint NOT NULL,
    min double precision NOT NULL,
    max double precision NOT NULL,
    avg double precision NOT NULL GENERATED ALWAYS AS (
        CASE WHEN count = 1 THEN sum WHEN abs(sum) > 1e-280 THEN sum / count ELSE 0 END) STORED,
    sum double precision NOT NULL,
    first double precision NOT NULL,
    first_time timestamptz NOT NULL,
    last double precision NOT NULL,
    last_time timestamptz NOT NULL,
    PRIMARY KEY (device, metric, "time")
) WITH (fillfactor = 80);
CREATE INDEX readings_per_minute_time ON {schema}.readings_per_minute USING brin ("time");
CREATE TABLE {schema}.readings_per_hour (LIKE {schema}.readings_per_minute INCLUDING ALL) WITH (fillfactor = 80);

COMMENT ON TABLE {schema}.readings_per_minute IS 'Numbers of each device and metric, per minute; also of readings that came late';
COMMENT ON TABLE {schema}.readings_per_hour IS 'Numbers of each device and metric, per hour; also of readings that came late';
DO $body$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['readings_per_minute', 'readings_per_hour'] LOOP
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.device IS ''Which device measured it''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.metric IS ''What was measured, such as temperature''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I."time" IS ''When the minute or hour began (hours of UTC)''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.count IS ''How many numbers were measured in it''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.min IS ''The least of them''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.max IS ''The greatest of them''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.avg IS ''Their mean''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.sum IS ''Their sum; NaN if it is too large for a double''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.first IS ''The one measured first''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.first_time IS ''When the first was measured''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.last IS ''The one measured last''', name);
        EXECUTE format('COMMENT ON COLUMN {schema}.%I.last_time IS ''When the last was measured''', name);
    END LOOP;
END
$body$;

-- The sum of two sums. The server takes a sum beyond a double's range for an error, which must not refuse readings.
CREATE FUNCTION {internal}.add(a double precision, b double precision) RETURNS double precision
LANGUAGE sql IMMUTABLE AS $body$
    SELECT CASE WHEN abs(a) < 8.9e307 AND abs(b) < 8.9e307 THEN a + b ELSE 'NaN' END
$body$;
COMMENT ON FUNCTION {internal}.add(double precision, double precision) IS 'a + b; NaN if that may be too large for a double';
CREATE AGGREGATE {internal}.total(double precision) (sfunc = {internal}.add, stype = double precision, initcond = '0');
COMMENT ON AGGREGATE {internal}.total(double precision) IS 'Like sum, but NaN if that may be too large for a double';

-- Readings that are not in the rollups yet are added to them. Buckets are changed in one order everywhere, so that
-- two instances never wait for each other.
CREATE FUNCTION {internal}.add_rollups(relation regclass) RETURNS void
LANGUAGE plpgsql SET timezone = 'UTC' AS $body$
DECLARE
    unit text;
BEGIN
    FOREACH unit IN ARRAY ARRAY['minute', 'hour'] LOOP
        EXECUTE format($sql$
            INSERT INTO {schema}.%1$I AS had
                (device, metric, "time", count, min, max, sum, first, first_time, last, last_time)
            SELECT device, metric, date_trunc(%2$L, "time"), count(*), min(number), max(number),
                {internal}.total(number),
                (array_agg(number ORDER BY "time", "position", item))[1], min("time"),
                (array_agg(number ORDER BY "time" DESC, "position" DESC, item DESC))[1], max("time")
            FROM %3$s WHERE number IS NOT NULL
            GROUP BY 1, 2, 3 ORDER BY device COLLATE "C", metric COLLATE "C", 3
            ON CONFLICT (device, metric, "time") DO UPDATE SET
                count = had.count + excluded.count,
                min = least(had.min, excluded.min),
                max = greatest(had.max, excluded.max),
                sum = {internal}.add(had.sum, excluded.sum),
                first = CASE WHEN excluded.first_time < had.first_time THEN excluded.first ELSE had.first END,
                first_time = least(had.first_time, excluded.first_time),
                last = CASE WHEN excluded.last_time >= had.last_time THEN excluded.last ELSE had.last END,
                last_time = greatest(had.last_time, excluded.last_time)
        $sql$, 'readings_per_' || unit, unit, relation);
    END LOOP;
END
$body$;
COMMENT ON FUNCTION {internal}.add_rollups(regclass) IS 'Adds the readings in a table to the rollups';

-- Whatever still writes as an older version waits, so that nothing is stored between the two.
LOCK TABLE {schema}.readings IN SHARE ROW EXCLUSIVE MODE;
SELECT {internal}.add_rollups('{schema}.readings');

-- Deletes at most so many rows of before a day, and says how many.
CREATE FUNCTION {internal}.delete_before(name text, day date, at_most bigint) RETURNS integer
LANGUAGE plpgsql SET timezone = 'UTC' AS $body$
DECLARE
    deleted integer;
    place text := CASE name WHEN 'readings_default' THEN '{internal}' ELSE '{schema}' END;
BEGIN
    IF NOT pg_try_advisory_xact_lock({lock}) THEN
        RETURN 0;
    END IF;
    EXECUTE format('DELETE FROM %s.%I WHERE ctid = ANY (ARRAY('
        'SELECT ctid FROM %1$s.%2$I WHERE "time" < $1 LIMIT $2))', place, name)
        USING day::timestamptz, at_most;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END
$body$;
COMMENT ON FUNCTION {internal}.delete_before(text, date, bigint) IS 'Deletes rows of before a day, at most so many; how many it were';

-- Rows that must go quickly are found by their time.
CREATE VIEW {schema}.alerts AS
SELECT
    "time",
    CASE WHEN topic LIKE 'alerts/%' THEN split_part(topic, '/', 2) END AS severity,
    device,
    coalesce("text", number::text) AS message,
    substr(metric, 7) AS name,
    number,
    unit,
    json,
    topic,
    client,
    received,
    journal,
    "position",
    item
FROM {schema}.readings
WHERE topic LIKE 'alerts/%';
CREATE INDEX readings_alerts ON {schema}.readings ("time") WHERE topic LIKE 'alerts/%';

COMMENT ON VIEW {schema}.alerts IS 'What was published on alerts/{severity}; an alert with several values has several rows';
COMMENT ON COLUMN {schema}.alerts."time" IS 'When it was raised: the time the message says, else the time of receipt';
COMMENT ON COLUMN {schema}.alerts.severity IS 'From the topic, such as critical';
COMMENT ON COLUMN {schema}.alerts.device IS 'Which device it is about: from the message, else the client identifier';
COMMENT ON COLUMN {schema}.alerts.message IS 'What it says, as text';
COMMENT ON COLUMN {schema}.alerts.name IS 'The severity, and behind a dot the name of the value in the message, if it has several';
COMMENT ON COLUMN {schema}.alerts.number IS 'The value, if it is a number (true is 1, false is 0)';
COMMENT ON COLUMN {schema}.alerts.unit IS 'The unit of "number", as sent';
COMMENT ON COLUMN {schema}.alerts.json IS 'Values that are lists, and whole messages that say more than their value';
COMMENT ON COLUMN {schema}.alerts.topic IS 'The MQTT topic';
COMMENT ON COLUMN {schema}.alerts.client IS 'The MQTT client identifier of the publisher';
COMMENT ON COLUMN {schema}.alerts.received IS 'When it was received';
COMMENT ON COLUMN {schema}.alerts.journal IS 'Which journal the message lies in';
COMMENT ON COLUMN {schema}.alerts."position" IS 'Where in that journal; messages received later have a higher position';
COMMENT ON COLUMN {schema}.alerts.item IS 'Which value of the message, from 0';

COMMENT ON COLUMN {schema}.latest_readings.device IS 'Which device measured it';
COMMENT ON COLUMN {schema}.latest_readings.metric IS 'What was measured, such as temperature';
COMMENT ON COLUMN {schema}.latest_readings."time" IS 'When it was measured: the time the message says, else the time of receipt';
COMMENT ON COLUMN {schema}.latest_readings.number IS 'The value, if it is a number (true is 1, false is 0)';
COMMENT ON COLUMN {schema}.latest_readings."text" IS 'The value, if it is text; also a number too large or too long to be exact in "number"';
COMMENT ON COLUMN {schema}.latest_readings.unit IS 'The unit of "number", as sent';
COMMENT ON COLUMN {schema}.latest_readings.json IS 'Values that are lists, and whole messages that say more than their value';
COMMENT ON COLUMN {schema}.latest_readings.topic IS 'The MQTT topic';
COMMENT ON COLUMN {schema}.latest_readings.received IS 'When it was received';
COMMENT ON COLUMN {schema}.device_status.device IS 'The device';

COMMENT ON COLUMN {internal}.cursor.journal IS 'The number by which rows know the journal';
COMMENT ON COLUMN {internal}.cursor.journal_id IS 'The whole identifier of the journal';
COMMENT ON COLUMN {internal}.cursor.changed IS 'When it last moved';
COMMENT ON TABLE {internal}.migration IS 'Which steps of the schema are done';
COMMENT ON COLUMN {internal}.migration.version IS 'The number of the step, from 1';
COMMENT ON COLUMN {internal}.migration.name IS 'What the step is about';
COMMENT ON COLUMN {internal}.migration.applied IS 'When it was done';
COMMENT ON COLUMN {internal}.quarantine.journal IS 'Which journal the message lies in';
COMMENT ON COLUMN {internal}.quarantine."position" IS 'Where in that journal';
COMMENT ON COLUMN {internal}.quarantine.received IS 'When it was received';
COMMENT ON COLUMN {internal}.quarantine.topic IS 'The MQTT topic';
COMMENT ON COLUMN {internal}.quarantine.client IS 'The MQTT client identifier of the publisher';
COMMENT ON COLUMN {internal}.quarantine.payload IS 'The bytes as published';
COMMENT ON COLUMN {internal}.quarantine.reason IS 'Why the database refused it';
COMMENT ON COLUMN {internal}.quarantine.refused IS 'When it was refused';
