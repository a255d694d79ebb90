-- In DuckDB: the visits of the web shop, a state for each day, and a script that takes the states elsewhere.
CREATE TABLE visits AS SELECT * FROM (VALUES
  ('2024-01-30', 'ann', 12.50), ('2024-01-30', 'bob', 3.00), ('2024-01-31', 'ann', 7.25), ('2024-02-01', 'cid', 2.00)
) AS v(day, visitor, basket);
CREATE TABLE web_days AS
SELECT day, crdt_gset_state(visitor) AS visitors, crdt_max_state(basket) AS largest FROM visits GROUP BY day ORDER BY day;
COPY (
  SELECT format('INSERT INTO web_days VALUES (''{}'', X''{}'', X''{}'');', day, hex(visitors), hex(largest)) FROM web_days ORDER BY day
) TO 'web_days.sql' (HEADER false, QUOTE '');
