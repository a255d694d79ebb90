{#- The rows of a MergeQL statement, as a query. -#}
{% macro statement(text) %}
  {{ return(adapter.dispatch('statement', 'mergeql')(text)) }}
{% endmacro %}

{% macro default__statement(text) %}
  {{ exceptions.raise_compiler_error("mergeql: statements need the extension, which there is for DuckDB and Postgres; mergeql.merge() works in plain SQL for some strategies") }}
{% endmacro %}

{% macro duckdb__statement(text) %}
  {{ return('select * from query(mergeql_sql(' ~ mergeql.literal(text) ~ '))') }}
{% endmacro %}

{#- Postgres must know the columns of a query before it runs, so the statement is lowered while the model compiles. -#}
{% macro postgres__statement(text) %}
  {%- if not execute -%}{{ return('select 1 as mergeql_is_not_lowered_while_parsing') }}{%- endif -%}
  {{ return('select * from (' ~ run_query('select mergeql_sql(' ~ mergeql.literal(text) ~ ')').columns[0].values()[0] ~ ') as merged') }}
{% endmacro %}

{#- Merged rows of several sources: relations (each under its own name, which is its origin), queries in parentheses, or
    {'relation': ..., 'name': ...}. -#}
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
  {{ return('select ' ~ values | join(', ') ~ ' from (' ~ mergeql.statement(mergeql.merge_text(sources, key, {}, none, 'state')) ~ ') as joined') }}
{% endmacro %}

{#- Merged rows for a snapshot with the strategy `check`: `check_cols: [mergeql_digest]` notices a change in any column. -#}
{% macro snapshot(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}) %}
  {{ return('select merged.*, md5(cast(merged as ' ~ api.Column.translate_type('string') ~ ')) as mergeql_digest from ('
            ~ mergeql.merge(sources, key, strategies, version_by, default, delete_by, map) ~ ') as merged') }}
{% endmacro %}

{#- The value of a state in a column's type. -#}
{% macro value_of(state, type) %}
  {{ return(adapter.dispatch('value_of', 'mergeql')(state, type)) }}
{% endmacro %}

{% macro default__value_of(state, type) %}
  {{ exceptions.raise_compiler_error("mergeql: states need the extension, which there is for DuckDB and Postgres") }}
{% endmacro %}

{% macro duckdb__value_of(state, type) %}
  {%- set json = 'crdt_value(' ~ state ~ ')' -%}
  {%- if type.endswith(']') or type.upper().startswith(('STRUCT', 'MAP', 'UNION')) -%}
    {{ return('cast(cast(' ~ json ~ ' as json) as ' ~ type ~ ')') }}
  {%- endif -%}
  {{ return("cast(json_extract_string(" ~ json ~ ", '$') as " ~ type ~ ')') }}
{% endmacro %}

{% macro postgres__value_of(state, type) %}
  {%- set json = 'crdt_value(' ~ state ~ ')::jsonb' -%}
  {%- if type.endswith('[]') or type.upper() == 'ARRAY' -%}
    {{ return("(select case when jsonb_typeof(j) = 'array' then array(select jsonb_array_elements_text(j)) end from (select " ~ json ~ ' as j) as v)::'
              ~ ('text[]' if type.upper() == 'ARRAY' else type)) }}
  {%- elif type.lower() in ('json', 'jsonb') -%}
    {{ return('(' ~ json ~ ')::' ~ type) }}
  {%- endif -%}
  {{ return('(' ~ json ~ " #>> '{}')::" ~ type) }}
{% endmacro %}
