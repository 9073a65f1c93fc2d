-- One day of readings, stored as the sink does for a day that came in order: the rows, what is summed up of them, and
-- the day's partition before both. {day} counts from today backwards, {dense} and {sparse} are devices, {seconds} and
-- {minutes} how often each of them reports.
BEGIN;
SELECT tidegate_internal.make_partitions(d, d) FROM (SELECT (now() AT TIME ZONE 'UTC')::date - {day} AS d) days;
CREATE TEMP TABLE incoming ON COMMIT DROP AS
SELECT "time", device, metric, round((20 + 5 * sin(extract(epoch FROM "time") / 7000 + seed))::numeric, 1)::float8 AS number,
    NULL::text AS "text", unit, NULL::jsonb AS json, NULL::bytea AS payload,
    'sensors/' || device || '/' || metric AS topic, 'gateway-' || seed % 8 AS client, "time" AS received,
    1::bigint AS journal,
    (1000 - {day})::bigint * 10000000 + row_number() OVER (ORDER BY "time", device, metric) AS "position", 0 AS item
FROM (
    SELECT midnight + at * interval '1 second' + seed * interval '7 ms' AS "time",
        'machine-' || to_char(seed, 'FM0000') AS device, 'temperature' AS metric, '°C' AS unit, seed
    FROM generate_series(0, 86400 - 1, {seconds}) at, generate_series(1, {dense}) seed,
        (SELECT ((now() AT TIME ZONE 'UTC')::date - {day}) AT TIME ZONE 'UTC' AS midnight) days
    UNION ALL
    SELECT midnight + (at + seed % {minutes}) * interval '1 minute', 'room-' || to_char(seed, 'FM0000'), metric, unit, seed
    FROM generate_series(0, 1440 - {minutes}, {minutes}) at, generate_series(1, {sparse}) seed,
        (VALUES ('temperature', '°C'), ('humidity', '%'), ('co2', 'ppm'), ('pressure', 'hPa'), ('battery', 'V')) m (metric, unit),
        (SELECT ((now() AT TIME ZONE 'UTC')::date - {day}) AT TIME ZONE 'UTC' AS midnight) days
) made;
INSERT INTO tidegate.readings SELECT * FROM incoming ORDER BY "position";
SELECT tidegate_internal.add_rollups('incoming');
COMMIT;
