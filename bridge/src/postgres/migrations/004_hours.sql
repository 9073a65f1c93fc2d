-- The rollups per hour are written less often than those per minute, with a cursor of their own.

-- Renamed, so that an older version that is still at work stops here and finds that the schema is newer.
ALTER TABLE {internal}.rollup_cursor RENAME COLUMN "position" TO minutes;
ALTER TABLE {internal}.rollup_cursor ADD COLUMN hours bigint;
UPDATE {internal}.rollup_cursor SET hours = minutes;
ALTER TABLE {internal}.rollup_cursor ALTER COLUMN hours SET NOT NULL;
COMMENT ON COLUMN {internal}.rollup_cursor.minutes IS 'Every reading of before this position is in readings_per_minute';
COMMENT ON COLUMN {internal}.rollup_cursor.hours IS 'Every reading of before this position is in readings_per_hour';

-- Adds to one of the two; otherwise as add_rollups was.
CREATE FUNCTION {internal}.add_rollup(relation regclass, unit text) RETURNS void
LANGUAGE plpgsql SET timezone = 'UTC' AS $body$
BEGIN
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
END
$body$;
COMMENT ON FUNCTION {internal}.add_rollup(regclass, text) IS 'Adds the readings in a table to the rollups per minute or per hour';

CREATE OR REPLACE FUNCTION {internal}.add_rollups(relation regclass) RETURNS void
LANGUAGE plpgsql AS $body$
BEGIN
    PERFORM {internal}.add_rollup(relation, 'minute');
    PERFORM {internal}.add_rollup(relation, 'hour');
END
$body$;

DROP FUNCTION {internal}.roll_up(bigint, bigint, bigint);
-- Adds readings to one of the rollups that are stored and not in it yet, as after a crash between the two.
CREATE FUNCTION {internal}.roll_up(unit text, of_journal bigint, begins bigint, ends bigint) RETURNS void
LANGUAGE plpgsql AS $body$
DECLARE
    is_moved boolean;
BEGIN
    EXECUTE format('UPDATE {internal}.rollup_cursor SET %1$I = $3, changed = now() WHERE journal = $1 AND %1$I = $2 '
        'RETURNING true', unit || 's') INTO is_moved USING of_journal, begins, ends;
    IF is_moved IS NULL THEN
        RAISE 'the rollups per % are no longer at position %', unit, begins USING ERRCODE = 'serialization_failure';
    END IF;
    CREATE TEMP TABLE to_roll_up ON COMMIT DROP AS
        SELECT * FROM {schema}.readings
        WHERE journal = of_journal AND "position" >= begins AND "position" < ends;
    -- Looked up anew each time: the table is another one in every transaction.
    PERFORM {internal}.add_rollup('pg_temp.to_roll_up'::text::regclass, unit);
END
$body$;
COMMENT ON FUNCTION {internal}.roll_up(text, bigint, bigint, bigint) IS 'Adds the readings of a journal from one position up to another to the rollups per minute or per hour';
