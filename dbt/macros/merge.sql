{#- The rows of a MergeQL statement, as a query. -#}
{% macro statement(text) %}
  {{ return(adapter.dispatch('statement', 'mergeql')(text)) }}
{% endmacro %}

{% macro default__statement(text) %}
  {{ exceptions.raise_compiler_error("mergeql: statements need the extension, which there is for DuckDB and Postgres; mergeql.merge() works in plain SQL for some strategies") }}
{% endmacro %}

{% macro duckdb__statement(text) %}
  {#- `dbt show` runs no hooks. -#}
  {%- if execute and var('mergeql_extension', none) -%}{%- do run_query(mergeql.duckdb__load()) -%}{%- endif -%}
  {{ return('select * from query(mergeql_sql(' ~ mergeql.literal(text) ~ '))') }}
{% endmacro %}

{#- Postgres must know the columns of a query before it runs, so the statement is lowered while the model compiles. -#}
{% macro postgres__statement(text) %}
  {%- if not execute -%}{{ return('select 1 as mergeql_is_not_lowered_while_parsing') }}{%- endif -%}
  {{ return('select * from (' ~ run_query('select mergeql_sql(' ~ mergeql.literal(text) ~ ')').columns[0].values()[0] ~ ') as merged') }}
{% endmacro %}

{#- Merged rows of several sources: relations (each under its own name), queries in parentheses, or {'relation': ..., 'name': ...}. -#}
{% macro merge(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}, where=none, options={}) %}
  {%- if mergeql.has_extension() -%}
    {{ return(mergeql.statement(mergeql.merge_text(sources, key, strategies, version_by, default, delete_by, map, where, none, options))) }}
  {%- endif -%}
  {{ return(mergeql.plain_merge(sources, key, strategies, version_by, default, delete_by, map, where)) }}
{% endmacro %}

{#- A row for each cell whose contributing values differ: key, column_name, value, strategy, winner_sources, losers. -#}
{% macro conflicts(sources, key, strategies={}, version_by=none, default=none, map={}, where=none) %}
  {{ return(mergeql.statement(mergeql.merge_text(sources, key, strategies, version_by, default, none, map, where, 'CONFLICTS'))) }}
{% endmacro %}

{#- A row for each cell: which sources its value comes from. -#}
{% macro provenance(sources, key, strategies={}, version_by=none, default=none, map={}, where=none) %}
  {{ return(mergeql.statement(mergeql.merge_text(sources, key, strategies, version_by, default, none, map, where, 'PROVENANCE'))) }}
{% endmacro %}

{#- A row for each key with the state of each column, for rollups in two steps: store it, and merge what is stored with the strategy `state`. -#}
{% macro state(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}) %}
  {{ return(mergeql.statement(mergeql.merge_text(sources, key, strategies, version_by, default, delete_by, map, none, 'STATE'))) }}
{% endmacro %}

{#- The join of models of states: key columns, and the resolved value of each column in the type that `columns` gives it. -#}
{% macro resolve(sources, key, columns) %}
  {%- set values = [] -%}
  {%- for column in mergeql.as_list(key) -%}{%- do values.append(adapter.quote(column)) -%}{%- endfor -%}
  {%- for column, type in columns.items() -%}
    {%- do values.append(mergeql.value_of(adapter.quote(column), type) ~ ' as ' ~ adapter.quote(column)) -%}
  {%- endfor -%}
  {#- What is deleted in all that was said of it is no row. -#}
  {%- set deletes = [] -%}
  {%- for item in sources if execute -%}
    {%- do deletes.extend(run_query('select * from ' ~ mergeql.source_text(item) ~ ' where false').column_names | select('equalto', '_mergeql_deleted')) -%}
  {%- endfor -%}
  {{ return('select ' ~ values | join(', ') ~ ' from (' ~ mergeql.statement(mergeql.merge_text(sources, key, {}, none, 'state')) ~ ') as joined'
            ~ (' where ' ~ mergeql.alive() if deletes else '')) }}
{% endmacro %}

{#- Merged rows for a snapshot with the strategy `check`: `check_cols: [mergeql_digest]` notices a change in any column. -#}
{% macro snapshot(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}) %}
  {{ return('select __mergeql_m.*, md5(cast(__mergeql_m as ' ~ api.Column.translate_type('string') ~ ')) as mergeql_digest from ('
            ~ mergeql.merge(sources, key, strategies, version_by, default, delete_by, map) ~ ') as __mergeql_m') }}
{% endmacro %}

{#- The value of a state in a column's type. -#}
{% macro value_of(state, type) %}
  {{ return(adapter.dispatch('value_of', 'mergeql')(state, type)) }}
{% endmacro %}

{% macro default__value_of(state, type) %}
  {{ exceptions.raise_compiler_error("mergeql: states need the extension, which there is for DuckDB and Postgres") }}
{% endmacro %}

{% macro duckdb__value_of(state, type) %}
  {%- set value = 'crdt_value_text(' ~ state ~ ')' -%}
  {%- if type.endswith(']') or type.upper().startswith(('STRUCT', 'MAP', 'UNION')) -%}
    {#- Bytes are text in JSON, whose escapes a cast reads. -#}
    {%- set json = 'cast(mergeql_json(' ~ state ~ ') as json)' -%}
    {%- set parts = [] -%}
    {#- Behind every other quote are names. -#}
    {%- for part in type.split('"') -%}{%- do parts.append(part if loop.index0 % 2 else part.replace('BLOB', 'VARCHAR')) -%}{%- endfor -%}
    {%- set text = parts | join('"') -%}
    {{ return('cast(' ~ json ~ ' as ' ~ type ~ ')' if text == type else 'cast(cast(' ~ json ~ ' as ' ~ text ~ ') as ' ~ type ~ ')') }}
  {%- elif type.upper() == 'BLOB' -%}
    {{ return('unhex(substr(' ~ value ~ ', 3))') }}
  {%- elif type.upper() == 'INTERVAL' -%}
    {%- set part = "cast(regexp_extract(" ~ value ~ ", '(-?[0-9]+) %s', 1) as bigint)" -%}
    {{ return('case when ' ~ value ~ ' is not null then to_months(cast(' ~ part % 'months' ~ ' as integer)) + to_days(cast(' ~ part % 'days'
              ~ ' as integer)) + to_microseconds(' ~ part % 'ns' ~ ' // 1000) end') }}
  {%- elif type.upper().startswith(('DATE', 'TIMESTAMP')) -%}
    {#- What is infinite there is the end of the numbers in a state. -#}
    {%- set words = ['infinity', '-infinity'] -%}{%- set ends = {} -%}{%- set shown = [] -%}
    {%- for word in words -%}{%- do shown.append("crdt_value_text(crdt_max_state(try_cast('" ~ word ~ "' as " ~ type ~ ")))") -%}{%- endfor -%}
    {%- set found = run_query('select ' ~ shown | join(', ')).rows[0] if execute else [none, none] -%}
    {%- for word in words -%}{%- if found[loop.index0] is not none -%}{%- do ends.update({found[loop.index0]: word}) -%}{%- endif -%}{%- endfor -%}
    {%- set whens = [] -%}
    {%- for end, word in ends.items() -%}{%- do whens.append("when '" ~ end ~ "' then '" ~ word ~ "'") -%}{%- endfor -%}
    {{ return('cast(' ~ ('case ' ~ value ~ ' ' ~ whens | join(' ') ~ ' else ' ~ value ~ ' end' if whens else value) ~ ' as ' ~ type ~ ')') }}
  {%- endif -%}
  {{ return('cast(' ~ value ~ ' as ' ~ type ~ ')') }}
{% endmacro %}

{% macro postgres__value_of(state, type) %}
  {{ return('mergeql_value_like(' ~ state ~ ', cast(null as ' ~ type ~ '))') }}
{% endmacro %}

{#- The types of a relation's columns as they are written in SQL. -#}
{% macro types_of(relation) %}
  {{ return(adapter.dispatch('types_of', 'mergeql')(relation)) }}
{% endmacro %}

{% macro default__types_of(relation) %}
  {%- set types = {} -%}
  {%- for column in adapter.get_columns_in_relation(relation) -%}{%- do types.update({column.name: column.data_type}) -%}{%- endfor -%}
  {{ return(types) }}
{% endmacro %}

{#- Postgres' information_schema says ARRAY and USER-DEFINED of arrays and enums. -#}
{% macro postgres__types_of(relation) %}
  {%- set types = {} -%}
  {%- set found = run_query("select attname, format_type(atttypid, atttypmod) from pg_attribute where attrelid = " ~ mergeql.literal(relation | string)
                            ~ "::regclass and attnum > 0 and not attisdropped") -%}
  {%- for row in found -%}{%- do types.update({row[0]: row[1]}) -%}{%- endfor -%}
  {{ return(types) }}
{% endmacro %}
