-- Rollups follow the readings with a cursor of their own, and which series there are is known without looking for them.

CREATE TABLE {internal}.rollup_cursor (
    journal bigint PRIMARY KEY,
    "position" bigint NOT NULL,
    changed timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);
COMMENT ON TABLE {internal}.rollup_cursor IS 'How far the readings of each journal are in the rollups. Changed in the same transaction as the rollups.';
COMMENT ON COLUMN {internal}.rollup_cursor.journal IS 'The number by which rows know the journal';
COMMENT ON COLUMN {internal}.rollup_cursor."position" IS 'Every reading of before this position is in the rollups';
COMMENT ON COLUMN {internal}.rollup_cursor.changed IS 'When it last moved';

-- Adds readings to the rollups that are stored and not in them yet, as after a crash between the two.
CREATE FUNCTION {internal}.roll_up(of_journal bigint, begins bigint, ends bigint) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
    UPDATE {internal}.rollup_cursor SET "position" = ends, changed = now()
        WHERE journal = of_journal AND "position" = begins;
    IF NOT FOUND THEN
        RAISE 'the rollups are no longer at position %', begins USING ERRCODE = 'serialization_failure';
    END IF;
    CREATE TEMP TABLE to_roll_up ON COMMIT DROP AS
        SELECT * FROM {schema}.readings
        WHERE journal = of_journal AND "position" >= begins AND "position" < ends;
    -- Looked up anew each time: the table is another one in every transaction.
    PERFORM {internal}.add_rollups('pg_temp.to_roll_up'::text::regclass);
END
$body$;
COMMENT ON FUNCTION {internal}.roll_up(bigint, bigint, bigint) IS 'Adds the readings of a journal from one position up to another to the rollups';

CREATE TABLE {internal}.series (
    device text NOT NULL,
    metric text NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (device, metric)
) WITH (fillfactor = 80);
COMMENT ON TABLE {internal}.series IS 'Every metric of every device that has readings, and where its latest one is. Changed in the same transaction as the readings.';
COMMENT ON COLUMN {internal}.series.device IS 'The device';
COMMENT ON COLUMN {internal}.series.metric IS 'The metric';
COMMENT ON COLUMN {internal}.series.since IS 'When the day (UTC) of its latest reading began';

-- Finds the series in the readings: one probe of the index on (device, metric, time) for each of them.
CREATE FUNCTION {internal}.find_series() RETURNS void
LANGUAGE sql SET jit = off AS $body$
    INSERT INTO {internal}.series AS had (device, metric, since)
    WITH RECURSIVE found (device, metric) AS (
        (SELECT device, metric FROM {schema}.readings ORDER BY device, metric LIMIT 1)
        UNION ALL
        SELECT following.device, following.metric
        FROM found CROSS JOIN LATERAL (
            SELECT r.device, r.metric FROM {schema}.readings r
            WHERE (r.device, r.metric) > (found.device, found.metric)
            ORDER BY r.device, r.metric LIMIT 1
        ) following
    )
    SELECT found.device, found.metric, date_trunc('day', latest."time", 'UTC')
    FROM found CROSS JOIN LATERAL (
        SELECT r."time" FROM {schema}.readings r
        WHERE r.device = found.device AND r.metric = found.metric
        ORDER BY r."time" DESC LIMIT 1
    ) latest
    ORDER BY found.device COLLATE "C", found.metric COLLATE "C"
    ON CONFLICT (device, metric) DO UPDATE SET since = excluded.since WHERE had.since < excluded.since
$body$;
COMMENT ON FUNCTION {internal}.find_series() IS 'Adds the series that the readings have';

CREATE FUNCTION {internal}.forget_series(day date) RETURNS integer
LANGUAGE plpgsql SET timezone = 'UTC' AS $body$
DECLARE
    forgotten integer;
BEGIN
    DELETE FROM {internal}.series WHERE since < day::timestamptz;
    GET DIAGNOSTICS forgotten = ROW_COUNT;
    RETURN forgotten;
END
$body$;
COMMENT ON FUNCTION {internal}.forget_series(date) IS 'Forgets series whose latest reading is of before a day; how many it were';

-- Whatever still writes as an older version waits; what it stores afterwards is found when it is of this version.
LOCK TABLE {schema}.readings IN SHARE ROW EXCLUSIVE MODE;
SELECT {internal}.find_series();

-- For each series one probe of the index on (device, metric, time) of one day, whatever the number of readings and days.
CREATE OR REPLACE VIEW {schema}.latest_readings AS
SELECT s.device, s.metric, latest."time", latest.number, latest."text", latest.unit, latest.json, latest.topic, latest.received
FROM {internal}.series s CROSS JOIN LATERAL (
    SELECT r."time", r.number, r."text", r.unit, r.json, r.topic, r.received
    FROM {schema}.readings r
    WHERE r.device = s.device AND r.metric = s.metric AND r."time" >= s.since
        -- The last day that there is has no end.
        AND r."time" < CASE WHEN s.since < '290000-01-01 00:00:00+00' THEN s.since + interval '24 hours' ELSE 'infinity' END
    ORDER BY r."time" DESC, r."position" DESC, r.item DESC LIMIT 1
) latest;
