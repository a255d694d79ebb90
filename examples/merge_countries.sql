-- Run in the root of the project: mergeql -f examples/merge_countries.sql
MERGE 'examples/countries_list.csv', 'examples/country_json.ndjson', 'examples/countryinfo.parquet'
ON code
STRATEGY currencies = union, languages = union, population = max, * = lww
VERSION BY updated_at
WHERE code IN ('CH', 'IN', 'KZ', 'NR', 'UA')
ORDER BY code;

MERGE 'examples/countries_list.csv' AS list, 'examples/country_json.ndjson' AS json, 'examples/countryinfo.parquet' AS info
ON code
STRATEGY currencies = union, languages = union, population = max, * = lww
VERSION BY updated_at
WHERE code IN ('KZ', 'NR')
RETURNING CONFLICTS;
