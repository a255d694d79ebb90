-- In SQLite: the visits at the till, a state for each day, joined with those of the web shop into months.
CREATE TABLE visits AS SELECT column1 AS day, column2 AS visitor, column3 AS basket FROM (VALUES
  ('2024-01-31', 'dan', 5.0), ('2024-02-01', 'cid', 20.5), ('2024-02-03', 'ann', 1.0));
CREATE TABLE days AS
SELECT day, crdt_gset_state(visitor) AS visitors, crdt_max_state(basket) AS largest FROM visits GROUP BY day;
CREATE TABLE web_days (day TEXT, visitors BLOB, largest BLOB);
.read web_days.sql
-- What comes twice counts once.
.read web_days.sql
SELECT substr(day, 1, 7) AS month, crdt_value(crdt_merge(visitors)) AS visitors, crdt_value_double(crdt_merge(largest)) AS largest
FROM (SELECT * FROM days UNION ALL SELECT * FROM web_days) GROUP BY 1 ORDER BY 1;
