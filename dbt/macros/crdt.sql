{#- A table whose rows are what MERGE gives of everything that ever came, kept with the states that this takes: late, repeated and unordered
    batches give the table that one full refresh gives. States are in a second table, `<model>__mergeql_state`.

    `materialized='crdt'` is found as it is; for `materialized='incremental', incremental_strategy='crdt'` see the page on dbt. -#}
{% materialization crdt, default %}
  {{ return(mergeql.materialize_crdt()) }}
{% endmaterialization %}

{% macro materialize_crdt() %}
  {%- set key = mergeql.as_list(config.get('unique_key')) -%}
  {%- set strategies = config.get('merge_strategies', {}) or {} -%}
  {%- set default = config.get('merge_default') -%}
  {%- set version_by = config.get('version_by') -%}
  {%- set delete_by = config.get('delete_by') -%}
  {#- What is misspelt must not become last writer wins. -#}
  {%- set known = ['merge_strategies', 'merge_default', 'merge_exclude_columns', 'merge_update_columns'] -%}
  {%- for name in model.config if name.startswith('merge_') and name not in known -%}
    {{ exceptions.raise_compiler_error("mergeql: the model's config has `" ~ name ~ "`, which nothing reads: write merge_strategies or merge_default") }}
  {%- endfor -%}
  {%- set changes = ['ignore', 'fail', 'append_new_columns', 'sync_all_columns'] -%}
  {%- if config.get('on_schema_change', 'ignore') not in changes -%}
    {{ exceptions.raise_compiler_error("mergeql: on_schema_change is one of " ~ changes | join(', ') ~ ", not " ~ config.get('on_schema_change')) }}
  {%- endif -%}
  {%- if not key -%}
    {{ exceptions.raise_compiler_error("mergeql: a model that is merged needs unique_key: the columns that say which rows are one") }}
  {%- endif -%}
  {%- if not mergeql.has_extension() -%}
    {{ exceptions.raise_compiler_error("mergeql: a model with kept states needs the extension (var mergeql_extension on DuckDB, CREATE EXTENSION mergeql on Postgres)") }}
  {%- endif -%}

  {%- set states = api.Relation.create(database=this.database, schema=this.schema, identifier=this.identifier ~ '__mergeql_state', type='table') -%}
  {%- set existing = load_cached_relation(this) -%}
  {%- set existing_states = adapter.get_relation(database=states.database, schema=states.schema, identifier=states.identifier) -%}
  {%- set target_relation = this.incorporate(type='table') -%}
  {%- set grant_config = config.get('grants') -%}
  {#- The batch under the model's name: what counts per source counts the same in every batch. -#}
  {%- set batch = ['(' ~ sql ~ ') AS ' ~ mergeql.name(this.identifier)] -%}

  {#- dbt's own is_incremental() looks at the table alone: the model's SQL may be about its newest rows only. -#}
  {%- if existing is not none and existing.is_table and existing_states is none and not should_full_refresh() and config.get('materialized') == 'incremental' -%}
    {{ exceptions.raise_compiler_error("mergeql: " ~ this ~ " is there without its states (" ~ states ~ "): run with --full-refresh, so that all rows are merged") }}
  {%- endif -%}

  {{ run_hooks(pre_hooks, inside_transaction=False) }}
  {{ run_hooks(pre_hooks, inside_transaction=True) }}

  {%- if should_full_refresh() or existing is none or existing_states is none or not existing.is_table -%}
    {%- if existing is not none -%}{%- do adapter.drop_relation(existing) -%}{%- endif -%}
    {%- if existing_states is not none -%}{%- do adapter.drop_relation(existing_states) -%}{%- endif -%}
    {%- call statement('states') -%}
      {#- A contract is about the model's columns, not about those of its states. -#}
      create table {{ states }} as ({{ mergeql.state(batch, key, strategies, version_by, default, delete_by) }})
    {%- endcall -%}
    {%- call statement('main') -%}
      {{ create_table_as(False, target_relation, mergeql.merge(batch, key, strategies, version_by, default, delete_by)) }}
    {%- endcall -%}
  {%- else -%}
    {%- do mergeql.join_batch(target_relation, states, batch, key, strategies, version_by, default, delete_by) -%}
  {%- endif -%}

  {%- do apply_grants(target_relation, grant_config, should_revoke=should_revoke(existing, should_full_refresh())) -%}
  {%- do persist_docs(target_relation, model) -%}
  {{ run_hooks(post_hooks, inside_transaction=True) }}
  {{ adapter.commit() }}
  {{ run_hooks(post_hooks, inside_transaction=False) }}
  {{ return({'relations': [target_relation]}) }}
{% endmacro %}

{#- Joins the states of a batch into those that are kept, and refreshes the rows of its keys: the cost follows the batch. -#}
{% macro join_batch(target_relation, states, batch, key, strategies, version_by, default, delete_by) %}
  {%- set incoming = make_temp_relation(this, '__mergeql_batch').incorporate(type='table') -%}
  {%- set joined = make_temp_relation(this, '__mergeql_joined').incorporate(type='table') -%}
  {%- call statement('batch') -%}
    {{ create_table_as(True, incoming, mergeql.state(batch, key, strategies, version_by, default, delete_by)) }}
  {%- endcall -%}
  {%- do mergeql.match_columns(target_relation, states, incoming, batch, key, strategies, version_by, default, delete_by) -%}
  {%- set columns = adapter.get_columns_in_relation(states) | map(attribute='name') | list -%}
  {%- set of_batch = adapter.get_columns_in_relation(incoming) | map(attribute='name') | list -%}
  {%- set same = [] -%}
  {%- for column in key -%}{%- do same.append('b.' ~ adapter.quote(column) ~ ' is not distinct from s.' ~ adapter.quote(column)) -%}{%- endfor -%}
  {%- set quoted = [] -%}{%- set kept = [] -%}
  {%- for column in columns -%}
    {%- do quoted.append(adapter.quote(column)) -%}
    {%- set absent = 'cast(null as ' ~ ('crdt' if target.type == 'postgres' else 'blob') ~ ') as ' -%}
    {%- do kept.append(adapter.quote(column) if column in of_batch else absent ~ adapter.quote(column)) -%}
  {%- endfor -%}
  {%- set known = '(select s.* from ' ~ states ~ ' as s where exists (select 1 from ' ~ incoming ~ ' as b where ' ~ same | join(' and ') ~ ')) AS known' -%}
  {%- set fresh = '(select ' ~ kept | join(', ') ~ ' from ' ~ incoming ~ ') AS fresh' -%}
  {%- call statement('joined') -%}
    {{ create_table_as(True, joined, mergeql.statement(mergeql.merge_text([known, fresh], key, {}, none, 'state'))) }}
  {%- endcall -%}
  {%- set types = {} -%}
  {%- for name, type in mergeql.types_of(target_relation).items() -%}{%- do types.update({name: type}) -%}{%- endfor -%}
  {%- set names = [] -%}{%- set values = [] -%}
  {%- for column in columns if column in types -%}
    {%- do names.append(adapter.quote(column)) -%}
    {%- do values.append(adapter.quote(column) if column in key else mergeql.value_of(adapter.quote(column), types[column])) -%}
  {%- endfor -%}
  {%- set alive = " where coalesce(crdt_value(" ~ adapter.quote('_mergeql_deleted') ~ "), 'null') in ('null', 'false', '0')" if '_mergeql_deleted' in columns else '' -%}
  {%- for relation in [states, target_relation] -%}
    {%- call statement('forget_' ~ loop.index) -%}
      delete from {{ relation }} as s where exists (select 1 from {{ joined }} as b where {{ same | join(' and ') }})
    {%- endcall -%}
  {%- endfor -%}
  {%- call statement('keep') -%}
    insert into {{ states }} ({{ quoted | join(', ') }}) select {{ quoted | join(', ') }} from {{ joined }}
  {%- endcall -%}
  {%- call statement('main') -%}
    insert into {{ target_relation }} ({{ names | join(', ') }}) select {{ values | join(', ') }} from {{ joined }}{{ alive }}
  {%- endcall -%}
  {%- do adapter.drop_relation(incoming) -%}
  {%- do adapter.drop_relation(joined) -%}
{% endmacro %}

{#- What happens with columns that the kept states don't have, as on_schema_change says: ignore, fail, append_new_columns or sync_all_columns (which
    removes none here: what came once is part of the answer). -#}
{% macro match_columns(target_relation, states, incoming, batch, key, strategies, version_by, default, delete_by) %}
  {%- set known = adapter.get_columns_in_relation(states) | map(attribute='name') | list -%}
  {%- set added = [] -%}
  {%- for column in adapter.get_columns_in_relation(incoming) if column.name not in known -%}
    {#- Postgres calls the type of a state USER-DEFINED here. -#}
    {%- do added.append(api.Column.create(column.name, 'crdt' if target.type == 'postgres' else column.data_type)) -%}
  {%- endfor -%}
  {%- if not added -%}{{ return('') }}{%- endif -%}
  {%- set how = config.get('on_schema_change', 'ignore') -%}
  {%- if how == 'ignore' -%}
    {%- do log('mergeql: ' ~ this ~ ' ignores the new columns ' ~ added | map(attribute='name') | join(', ') ~ ' (on_schema_change)', info=True) -%}
  {%- elif how == 'fail' -%}
    {{ exceptions.raise_compiler_error("mergeql: the batch has columns that " ~ this ~ " lacks: " ~ added | map(attribute='name') | join(', ') ~ ". Set on_schema_change to append_new_columns, or run with --full-refresh") }}
  {%- else -%}
    {%- set shown = make_temp_relation(this, '__mergeql_typed').incorporate(type='table') -%}
    {%- call statement('typed') -%}
      {{ create_table_as(True, shown, mergeql.merge(batch, key, strategies, version_by, default, delete_by)) }}
    {%- endcall -%}
    {%- set typed = [] -%}
    {%- set names = added | map(attribute='name') | list -%}
    {%- for column in adapter.get_columns_in_relation(shown) if column.name in names -%}{%- do typed.append(column) -%}{%- endfor -%}
    {%- do adapter.drop_relation(shown) -%}
    {%- do alter_relation_add_remove_columns(states, added, none) -%}
    {%- do alter_relation_add_remove_columns(target_relation, typed, none) -%}
  {%- endif -%}
{% endmacro %}

{#- `materialized='incremental'`: with incremental_strategy='crdt' as above, else as the adapter does it. The root project's materialization
    calls this; see the page on dbt. -#}
{% macro materialize_incremental() %}
  {%- if config.get('incremental_strategy') == 'crdt' -%}
    {{ return(mergeql.materialize_crdt()) }}
  {%- endif -%}
  {{ return(adapter.dispatch('adapters_incremental', 'mergeql')()) }}
{% endmacro %}

{% macro default__adapters_incremental() %}
  {{ return(dbt.materialization_incremental_default()) }}
{% endmacro %}

{% macro duckdb__adapters_incremental() %}
  {{ return(dbt_duckdb.materialization_incremental_duckdb()) }}
{% endmacro %}

{#- As dbt's own, for models that are materialized as `crdt`: whether a batch is joined into what is there. -#}
{% macro is_incremental() %}
  {%- if not execute -%}{{ return(false) }}{%- endif -%}
  {%- set existing = load_cached_relation(this) -%}
  {#- Where the states are not there, all rows are merged anew. -#}
  {%- set states = adapter.get_relation(database=this.database, schema=this.schema, identifier=this.identifier ~ '__mergeql_state') -%}
  {{ return(existing is not none and existing.is_table and states is not none and not should_full_refresh()) }}
{% endmacro %}
