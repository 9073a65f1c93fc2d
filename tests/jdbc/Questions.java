// What Metabase does with a database, through the driver that it uses: it lists schemas, tables, columns and keys, looks
// at samples, and asks questions. Every answer is a line `subject: values`; the test that runs this compares them.
//
//   java -cp postgresql.jar Questions.java jdbc:postgresql://host:port/database?user=reader

import java.sql.Connection;
import java.sql.DatabaseMetaData;
import java.sql.DriverManager;
import java.sql.ResultSet;
import java.sql.ResultSetMetaData;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;

public class Questions {
    static final String SCHEMA = "tidegate";

    // What may be read of tables outside the server's own schemas; partitions would be of kind r as well.
    static final String READABLE = """
            SELECT n.nspname, c.relname, c.relkind, d.description IS NOT NULL AS has_comment
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
            LEFT JOIN pg_description d ON d.objoid = c.oid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass
            WHERE c.relkind IN ('r', 'p', 'v', 'f', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
                AND has_schema_privilege(n.oid, 'USAGE')
                AND (has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT'))
            ORDER BY 1, 2""";

    // Types and comments of columns in the way of recent versions, which do not ask the driver.
    static final String FIELDS = """
            SELECT c.table_name, count(*),
                count(*) FILTER (WHERE c.udt_schema NOT IN ('public', 'pg_catalog')) AS of_own_types,
                count(*) FILTER (WHERE col_description(CAST(CAST(format('%I.%I', CAST(c.table_schema AS text),
                    CAST(c.table_name AS text)) AS regclass) AS oid), c.ordinal_position) IS NULL) AS without_comment
            FROM information_schema.columns c
            WHERE c.table_schema !~ '^information_schema|catalog_history|pg_' GROUP BY 1 ORDER BY 1""";

    static final String FOREIGN_KEYS = """
            SELECT count(*) FROM pg_constraint c
            JOIN pg_class fk_table ON c.conrelid = fk_table.oid JOIN pg_namespace fk_ns ON c.connamespace = fk_ns.oid
            WHERE fk_ns.nspname !~ '^information_schema|catalog_history|pg_' AND c.contype = 'f'::char""";

    // The first column of each index without a condition, which Metabase calls indexed.
    static final String INDEXED = """
            SELECT DISTINCT ct.relname, a.attname FROM pg_index i
            JOIN pg_class ct ON ct.oid = i.indrelid JOIN pg_namespace n ON n.oid = ct.relnamespace
            JOIN pg_attribute a ON a.attrelid = ct.oid AND a.attnum = i.indkey[0]
            WHERE i.indpred IS NULL AND n.nspname = 'tidegate' ORDER BY 1, 2""";

    static final String[][] QUESTIONS = {
        {"count by hour in Berlin", """
            SELECT date_trunc('hour', "time" AT TIME ZONE 'Europe/Berlin') AS hour, count(*) FROM tidegate.readings
            WHERE metric = 'temperature' GROUP BY 1 ORDER BY 1"""},
        {"count by day in New York", """
            SELECT CAST(date_trunc('day', "time" AT TIME ZONE 'America/New_York') AS date) AS day, count(*)
            FROM tidegate.readings WHERE metric = 'temperature' GROUP BY 1 ORDER BY 1"""},
        {"latest per device", """
            SELECT device, metric, number, unit FROM tidegate.latest_readings ORDER BY 1, 2"""},
        {"one device and a time", """
            SELECT count(*), avg(number) FROM tidegate.readings WHERE device = ?
            AND "time" >= CAST('2001-02-03 10:00:00Z' AS timestamptz) AND "time" < CAST('2001-02-03 11:00:00Z' AS timestamptz)"""},
        {"distinct devices", "SELECT count(DISTINCT device) FROM tidegate.readings"},
        {"mean per minute", """
            SELECT "time" AT TIME ZONE 'UTC', avg, count FROM tidegate.readings_per_minute
            WHERE device = 'machine-1' AND metric = 'temperature' AND "time" >= CAST('2001-02-03 00:00:00Z' AS timestamptz)
            AND "time" < CAST('2001-02-04 00:00:00Z' AS timestamptz) ORDER BY 1"""},
        {"joined with the status", """
            SELECT s.device, s.status, sum(h.count) FROM tidegate.readings_per_hour h
            LEFT JOIN tidegate.device_status s ON s.device = h.device GROUP BY 1, 2 ORDER BY 1"""},
        {"alerts", "SELECT severity, device, message FROM tidegate.alerts ORDER BY \"time\""},
    };

    static final String[] WRITES = {
        "INSERT INTO tidegate.readings_per_hour (device) VALUES ('mine')",
        "UPDATE tidegate.readings SET number = 0",
        "DELETE FROM tidegate.readings",
        "TRUNCATE tidegate.readings_per_minute",
        "CREATE TABLE tidegate.model (n int)",
        "SELECT * FROM tidegate_internal.cursor",
    };

    static Connection connection;

    public static void main(String[] arguments) throws SQLException {
        connection = DriverManager.getConnection(arguments[0]);
        connection.setAutoCommit(true);
        list();
        sample();
        for (String[] question : QUESTIONS) {
            ask(question[0], question[1], question[1].contains("?") ? new Object[] {"machine-1"} : new Object[] {});
        }
        connection.createStatement().execute("SET default_transaction_read_only = off");
        for (String write : WRITES) {
            try {
                connection.createStatement().execute(write);
                say("allowed", write);
            } catch (SQLException error) {
                say("refused", error.getSQLState(), write.substring(0, write.indexOf(' ')));
            }
        }
        connection.close();
    }

    static void list() throws SQLException {
        DatabaseMetaData meta = connection.getMetaData();
        List<String> tables = new ArrayList<>();
        try (ResultSet all = meta.getTables(null, SCHEMA, "%", new String[] {"TABLE", "PARTITIONED TABLE", "VIEW",
                "FOREIGN TABLE", "MATERIALIZED VIEW"})) {
            while (all.next()) {
                tables.add(all.getString("TABLE_NAME"));
                say("table", all.getString("TABLE_NAME"), all.getString("TABLE_TYPE"), has(all.getString("REMARKS")));
            }
        }
        ask("readable", READABLE);
        for (String table : tables) {
            List<String> columns = new ArrayList<>();
            int without = 0;
            try (ResultSet all = meta.getColumns(null, SCHEMA, table, "%")) {
                while (all.next()) {
                    columns.add(all.getString("COLUMN_NAME") + " " + all.getString("TYPE_NAME"));
                    without += all.getString("REMARKS") == null ? 1 : 0;
                }
            }
            say("columns of " + table, String.join(", ", columns));
            say("columns without comment", table, String.valueOf(without));
            List<String> keys = new ArrayList<>();
            try (ResultSet all = meta.getPrimaryKeys(null, SCHEMA, table)) {
                while (all.next()) {
                    keys.add(all.getInt("KEY_SEQ") + " " + all.getString("COLUMN_NAME"));
                }
            }
            keys.sort(null);
            int foreign = 0;
            try (ResultSet all = meta.getImportedKeys(null, SCHEMA, table)) {
                while (all.next()) {
                    foreign++;
                }
            }
            say("keys of " + table, String.join(", ", keys), foreign + " foreign");
            try (ResultSet all = meta.getIndexInfo(null, SCHEMA, table, false, true)) {
                List<String> indexes = new ArrayList<>();
                while (all.next()) {
                    if (all.getInt("ORDINAL_POSITION") == 1) {
                        indexes.add(all.getString("COLUMN_NAME").replace("\"", ""));
                    }
                }
                indexes.sort(null);
                say("indexes of " + table, String.join(", ", indexes));
            }
        }
        ask("fields", FIELDS);
        ask("foreign keys", FOREIGN_KEYS);
        ask("indexed", INDEXED);
    }

    // Fingerprints: the first of each table, with long text cut.
    static void sample() throws SQLException {
        ask("sample", """
            SELECT count(*), count(DISTINCT device), max(length(topic)) FROM (
                SELECT "time", substring(device, 1, 1234) AS device, substring(metric, 1, 1234) AS metric, number,
                    substring(topic, 1, 1234) AS topic, received FROM tidegate.readings LIMIT 10000) sample""");
        ask("sample", """
            SELECT count(*), min(min), max(max) FROM (
                SELECT substring(device, 1, 1234), min, max FROM tidegate.readings_per_minute LIMIT 10000) sample""");
    }

    static void ask(String subject, String sql, Object... parameters) throws SQLException {
        try (var statement = connection.prepareStatement(sql)) {
            for (int index = 0; index < parameters.length; index++) {
                statement.setObject(index + 1, parameters[index]);
            }
            try (ResultSet rows = statement.executeQuery()) {
                ResultSetMetaData meta = rows.getMetaData();
                while (rows.next()) {
                    String[] values = new String[meta.getColumnCount()];
                    for (int index = 0; index < values.length; index++) {
                        values[index] = rows.getString(index + 1);
                    }
                    say(subject, values);
                }
            }
        }
    }

    static String has(String remarks) {
        return remarks == null || remarks.isEmpty() ? "no comment" : "a comment";
    }

    static void say(String subject, String... values) {
        System.out.println(subject + ": " + String.join(" | ", values).replace("null", "-"));
    }
}
