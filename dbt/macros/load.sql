{#- Makes the extension's functions known: loads the file on DuckDB, creates the extension on Postgres. Without it, strategies that plain SQL can
    express still work. -#}
{% macro load() %}
  {{ return(adapter.dispatch('load', 'mergeql')()) }}
{% endmacro %}

{% macro default__load() %}
  {{ return('select 1') }}
{% endmacro %}

{% macro duckdb__load() %}
  {%- set path = var('mergeql_extension', none) -%}
  {{ return("load " ~ mergeql.literal(path) if path else 'select 1') }}
{% endmacro %}

{% macro postgres__load() %}
  {%- set wanted = var('mergeql_create_extension', true) and not var('mergeql_plain_sql', false) -%}
  {#- Where the server does not have it, plain SQL does what it can. -#}
  {{ return("do $$ begin if exists (select from pg_available_extensions where name = 'mergeql') then create extension if not exists mergeql; end if; end $$"
            if wanted else 'select 1') }}
{% endmacro %}

{#- Whether the extension's functions are known. -#}
{% macro has_extension() %}
  {%- if var('mergeql_plain_sql', false) or not execute -%}
    {{ return(not var('mergeql_plain_sql', false)) }}
  {%- endif -%}
  {{ return(adapter.dispatch('has_extension', 'mergeql')()) }}
{% endmacro %}

{% macro default__has_extension() %}
  {{ return(false) }}
{% endmacro %}

{% macro duckdb__has_extension() %}
  {#- Commands that only compile, as `dbt docs generate`, run no hooks. -#}
  {%- if var('mergeql_extension', none) -%}{%- do run_query(mergeql.duckdb__load()) -%}{%- endif -%}
  {{ return(run_query("select count(*) from duckdb_functions() where function_name = 'mergeql_sql'").columns[0].values()[0] > 0) }}
{% endmacro %}

{% macro postgres__has_extension() %}
  {{ return(run_query("select count(*) from pg_extension where extname = 'mergeql'").columns[0].values()[0] > 0) }}
{% endmacro %}
