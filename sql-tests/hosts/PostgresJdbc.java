// Postgres' driver for Java on a server of ours: what programs and tools for databases ask through it.

import java.sql.*;
import java.util.*;

public class PostgresJdbc {
    static List<String> rows(ResultSet rows, String... columns) throws SQLException {
        List<String> found = new ArrayList<>();
        while (rows.next()) {
            StringJoiner row = new StringJoiner("|");
            for (String column : columns) {
                row.add(String.valueOf(rows.getObject(column)));
            }
            found.add(row.toString());
        }
        return found;
    }

    static void same(Object expected, Object found) {
        if (!expected.equals(found)) {
            throw new AssertionError("expected " + expected + ", found " + found);
        }
    }

    public static void main(String[] arguments) throws Exception {
        String url = "jdbc:postgresql://127.0.0.1:" + arguments[0] + "/datafusion?user=me";
        try (Connection connection = DriverManager.getConnection(url); Statement statement = connection.createStatement()) {
            DatabaseMetaData about = connection.getMetaData();
            same("PostgreSQL", about.getDatabaseProductName());
            String merge = "MERGE nyc, london ON id STRATEGY salary = max, tag = union";
            same(List.of("1|90|a,c", "2|72|b", "3|64|d"), rows(statement.executeQuery(merge + " ORDER BY id"), "id", "salary", "tag"));

            // Prepared often enough that the driver names it, and asks for binary rows.
            try (PreparedStatement prepared = connection.prepareStatement(merge + " WHERE salary > ? ORDER BY id")) {
                for (int i = 0; i < 8; i++) {
                    prepared.setInt(1, 70 + i);
                    same(i < 2 ? 2 : 1, rows(prepared.executeQuery(), "id").size());
                }
            }
            try (PreparedStatement prepared = connection.prepareStatement("SELECT ?::date AS d, ?::timestamp AS t, ?::numeric AS n")) {
                prepared.setDate(1, java.sql.Date.valueOf("2024-01-02"));
                prepared.setTimestamp(2, Timestamp.valueOf("2024-01-02 03:04:05"));
                prepared.setBigDecimal(3, new java.math.BigDecimal("12.50"));
                ResultSet row = prepared.executeQuery();
                row.next();
                same("2024-01-02", row.getDate("d").toString());
                same("2024-01-02 03:04:05.0", row.getTimestamp("t").toString());
                same(0, row.getBigDecimal("n").compareTo(new java.math.BigDecimal("12.5")));
            }
            statement.execute("CREATE TABLE written (id INT, t TEXT)");
            try (PreparedStatement prepared = connection.prepareStatement("INSERT INTO written VALUES (?, ?)")) {
                for (int i = 0; i < 3; i++) {
                    prepared.setInt(1, i);
                    prepared.setString(2, "row " + i);
                    prepared.addBatch();
                }
                same("[1, 1, 1]", Arrays.toString(prepared.executeBatch()));
            }
            same(2, statement.executeUpdate("UPDATE written SET t = 'x' WHERE id > 0"));
            same(1, statement.executeUpdate("DELETE FROM written WHERE id = 0"));
            ResultSet types = statement.executeQuery("SELECT 1::smallint AS a, 1.50::decimal(10,2) AS b, true AS c, "
                + "TIMESTAMPTZ '2024-01-02T03:04:05Z' AS d, X'0102' AS e, INTERVAL '1 day 2 hours' AS f, NULL AS g, [1, NULL] AS h");
            types.next();
            same("1.50", types.getBigDecimal("b").toString());
            same(2, types.getBytes("e").length);
            for (String column : List.of("a", "c", "d", "f", "g", "h")) {
                types.getObject(column);
            }

            // What tools list.
            same(List.of("public|london", "public|nyc", "public|written"),
                rows(about.getTables(null, "public", "%", new String[] {"TABLE"}), "TABLE_SCHEM", "TABLE_NAME"));
            same(List.of("id|int4|4", "salary|int4|4", "tag|text|12"),
                rows(about.getColumns(null, "public", "nyc", "%"), "COLUMN_NAME", "TYPE_NAME", "DATA_TYPE"));
            same(List.of("datafusion"), rows(about.getCatalogs(), "TABLE_CAT"));
            same(true, rows(about.getSchemas(), "TABLE_SCHEM").contains("public"));
            same(true, rows(about.getTypeInfo(), "TYPE_NAME").contains("int4"));
            same(List.of(), rows(about.getPrimaryKeys(null, "public", "nyc"), "COLUMN_NAME"));
            same(List.of(), rows(about.getIndexInfo(null, "public", "nyc", false, false), "COLUMN_NAME"));
            same(List.of(), rows(about.getImportedKeys(null, "public", "nyc"), "FKCOLUMN_NAME"));

            // Transactions are taken for the driver's sake.
            connection.setAutoCommit(false);
            Savepoint savepoint = connection.setSavepoint("here");
            try {
                statement.executeQuery("MERGE nyc, london ON idd");
                throw new AssertionError("there is no such column");
            } catch (SQLException error) {
                same("42703", error.getSQLState());
            }
            connection.rollback(savepoint);
            same(List.of("1"), rows(statement.executeQuery("SELECT 1 AS one"), "one"));
            connection.commit();
            try (Statement cursor = connection.createStatement()) {
                cursor.setFetchSize(100);
                same(1000, rows(cursor.executeQuery("SELECT value FROM generate_series(1, 1000) AS t(value)"), "value").size());
            }
            connection.commit();
            connection.setAutoCommit(true);
            statement.setQueryTimeout(1);
            try {
                statement.executeQuery("SELECT count(*) FROM generate_series(1, 20000000000) AS a(x) WHERE x % 7 = 3");
                throw new AssertionError("it took no time");
            } catch (SQLException error) {
                same("57014", error.getSQLState());
            }
        }
        System.out.println("done");
    }
}
