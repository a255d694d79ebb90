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
  {%- set unknown = ['strategies', 'default', 'map', 'where', 'sources', 'key'] -%}
  {%- for name in model.config if (name in unknown or name.startswith('merge_') and name not in ['merge_strategies', 'merge_default']) and model.config[name] -%}
    {{ exceptions.raise_compiler_error("mergeql: the model's config has `" ~ name ~ "`, which nothing reads: write merge_strategies, merge_default or unique_key") }}
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
  {#- The batch under the model's name. A model may end in a comment. -#}
  {%- set batch = ['(' ~ sql ~ '\n) AS ' ~ mergeql.name(this.identifier)] -%}

  {#- dbt's own is_incremental() looks at the table alone: the model's SQL may be about its newest rows only. -#}
  {%- if existing is not none and existing.is_table and existing_states is none and not should_full_refresh() and config.get('materialized') == 'incremental' -%}
    {{ exceptions.raise_compiler_error("mergeql: " ~ this ~ " is there without its states (" ~ states ~ "): run with --full-refresh, so that all rows are merged") }}
  {%- endif -%}

  {{ run_hooks(pre_hooks, inside_transaction=False) }}
  {{ run_hooks(pre_hooks, inside_transaction=True) }}

  {%- if should_full_refresh() or existing is none or existing_states is none or not existing.is_table -%}
    {#- Within the transaction, or what is there would be gone if the model fails. -#}
    {%- call statement('begin') -%}select 1{%- endcall -%}
    {%- do mergeql.refuse_folds(batch, key, strategies, version_by, default, delete_by) -%}
    {%- if existing is not none -%}{%- do adapter.drop_relation(existing) -%}{%- endif -%}
    {%- if existing_states is not none -%}{%- do adapter.drop_relation(existing_states) -%}{%- endif -%}
    {#- The model's rows are read once: states and values are of the same rows, whatever comes in between. -#}
    {%- set rows = make_temp_relation(this, '__mergeql_rows').incorporate(type='table') -%}
    {%- call statement('rows') -%}{{ mergeql.temporary(rows, sql) }}{%- endcall -%}
    {%- set batch = ['(select * from ' ~ rows ~ ') AS ' ~ mergeql.name(this.identifier)] -%}
    {%- call statement('states') -%}
      {#- A contract is about the model's columns, not about those of its states. -#}
      create table {{ states }} as ({{ mergeql.state(batch, key, strategies, version_by, default, delete_by) }})
    {%- endcall -%}
    {%- call statement('main') -%}
      {{ create_table_as(False, target_relation, mergeql.merge(batch, key, strategies, version_by, default, delete_by)) }}
    {%- endcall -%}
    {%- do adapter.drop_relation(rows) -%}
    {%- if target.type == 'postgres' -%}
      {%- set quoted = [] -%}
      {%- for column in key -%}{%- do quoted.append(adapter.quote(column)) -%}{%- endfor -%}
      {#- A long text does not fit into a tree. -#}
      {%- set hashed = key | length == 1 and mergeql.types_of(states)[key[0]].startswith(('text', 'character varying')) -%}
      {%- call statement('index') -%}create index on {{ states }} {{ 'using hash ' if hashed }}({{ quoted | join(', ') }}){%- endcall -%}
    {%- endif -%}
    {%- do create_indexes(target_relation) -%}
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

{#- A temporary table, whose columns no contract is about. -#}
{% macro temporary(relation, sql) %}
  {{ return((config.get('sql_header') or '') ~ '\ncreate temporary table ' ~ relation ~ ' as (\n' ~ sql ~ '\n)') }}
{% endmacro %}

{#- The state of a strategy that folds is the set of its values, which is not what it folds them to. -#}
{% macro refuse_folds(batch, key, strategies, version_by, default, delete_by) %}
  {%- set lowered = [] -%}
  {%- for returning in [none, 'STATE'] -%}
    {%- set text = mergeql.merge_text(batch, key, strategies, version_by, default, delete_by, {}, none, returning) -%}
    {%- do lowered.append(run_query('select mergeql_sql(' ~ mergeql.literal(text) ~ ')').columns[0].values()[0]) -%}
  {%- endfor -%}
  {%- for fold in ['list_reduce(', 'WITH RECURSIVE fold('] if lowered[0].count(fold) > lowered[1].count(fold) -%}
    {{ exceptions.raise_compiler_error("mergeql: " ~ this ~ " has a strategy made by CREATE STRATEGY ... AS FOLD, which models that keep states cannot have: merge all rows (materialized='table'), or keep the values (gset) and fold them in a model over this one") }}
  {%- endfor -%}
{% endmacro %}

{#- A column's name as names are compared: DuckDB takes those that differ in case for one. -#}
{% macro folded(name) %}
  {{ return((name | lower) if target.type == 'duckdb' else name) }}
{% endmacro %}

{#- A condition that the row `s` has the key of one of these rows; `types` are those of the keys of `s` where they are others. Keys without NULL are
    found by their index. -#}
{% macro has_key_of(rows, key, types={}) %}
  {%- set equal = [] -%}{%- set same = [] -%}{%- set null = [] -%}
  {%- for column in key -%}
    {%- set own = 's.' ~ adapter.quote(column) -%}
    {%- set other = 'b.' ~ adapter.quote(column) -%}
    {%- set other = 'cast(' ~ other ~ ' as ' ~ types[mergeql.folded(column)] ~ ')' if mergeql.folded(column) in types else other -%}
    {%- do equal.append(other ~ ' = ' ~ own) -%}
    {%- do same.append(other ~ ' is not distinct from ' ~ own) -%}
    {%- do null.append(own ~ ' is null') -%}
  {%- endfor -%}
  {{ return(['exists (select 1 from ' ~ rows ~ ' as b where ' ~ equal | join(' and ') ~ ')',
             '(' ~ null | join(' or ') ~ ') and exists (select 1 from ' ~ rows ~ ' as b where ' ~ same | join(' and ') ~ ')']) }}
{% endmacro %}

{#- Joins the states of a batch into those that are kept, and refreshes the rows of its keys: the cost follows the batch. -#}
{% macro join_batch(target_relation, states, batch, key, strategies, version_by, default, delete_by) %}
  {%- set incoming = make_temp_relation(this, '__mergeql_batch').incorporate(type='table') -%}
  {%- set joined = make_temp_relation(this, '__mergeql_joined').incorporate(type='table') -%}
  {%- call statement('batch') -%}
    {{ mergeql.temporary(incoming, mergeql.state(batch, key, strategies, version_by, default, delete_by)) }}
  {%- endcall -%}
  {%- if target.type == 'postgres' -%}
    {#- Two runs at once: the other's rows would be found by neither. -#}
    {%- call statement('lock') -%}lock table {{ states }} in share row exclusive mode{%- endcall -%}
  {%- endif -%}
  {%- do mergeql.match_columns(target_relation, states, incoming, batch, key, strategies, version_by, default, delete_by) -%}
  {%- set columns = adapter.get_columns_in_relation(states) | map(attribute='name') | list -%}
  {%- set of_batch = [] -%}
  {%- for column in adapter.get_columns_in_relation(incoming) -%}{%- do of_batch.append(mergeql.folded(column.name)) -%}{%- endfor -%}
  {%- set quoted = [] -%}{%- set kept = [] -%}
  {%- for column in columns -%}
    {%- do quoted.append(adapter.quote(column)) -%}
    {%- set absent = 'cast(null as ' ~ ('crdt' if target.type == 'postgres' else 'blob') ~ ') as ' -%}
    {%- do kept.append(adapter.quote(column) if mergeql.folded(column) in of_batch else absent ~ adapter.quote(column)) -%}
  {%- endfor -%}
  {%- set of_keys = [] -%}
  {%- for condition in mergeql.has_key_of(incoming, key) -%}{%- do of_keys.append('select s.* from ' ~ states ~ ' as s where ' ~ condition) -%}{%- endfor -%}
  {%- set known = '(' ~ of_keys | join(' union all ') ~ ') AS known' -%}
  {%- set fresh = '(select ' ~ kept | join(', ') ~ ' from ' ~ incoming ~ ') AS fresh' -%}
  {%- call statement('joined') -%}
    {{ mergeql.temporary(joined, mergeql.statement(mergeql.merge_text([known, fresh], key, {}, none, 'state'))) }}
  {%- endcall -%}
  {%- set types = {} -%}
  {%- for name, type in mergeql.types_of(target_relation).items() -%}{%- do types.update({mergeql.folded(name): type}) -%}{%- endfor -%}
  {%- set keys = [] -%}
  {%- for column in key -%}{%- do keys.append(mergeql.folded(column)) -%}{%- endfor -%}
  {%- set names = [] -%}{%- set values = [] -%}
  {%- for column in columns if mergeql.folded(column) in types -%}
    {%- set type = types[mergeql.folded(column)] -%}
    {%- do names.append(adapter.quote(column)) -%}
    {%- do values.append('cast(' ~ adapter.quote(column) ~ ' as ' ~ type ~ ')' if mergeql.folded(column) in keys else mergeql.value_of(adapter.quote(column), type)) -%}
  {%- endfor -%}
  {%- do mergeql.check_fits(target_relation, joined, columns, keys, types) -%}
  {%- set alive = ' where ' ~ mergeql.alive() if '_mergeql_deleted' in columns else '' -%}
  {%- for condition in mergeql.has_key_of(joined, key) -%}
    {%- call statement('forget_states_' ~ loop.index) -%}delete from {{ states }} as s where {{ condition }}{%- endcall -%}
  {%- endfor -%}
  {%- for condition in mergeql.has_key_of(joined, key, types) -%}
    {%- call statement('forget_' ~ loop.index) -%}delete from {{ target_relation }} as s where {{ condition }}{%- endcall -%}
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

{#- Values that come later may be of wider types than the columns that the first run made, where a cast would round them. -#}
{% macro check_fits(target_relation, joined, columns, keys, types) %}
  {%- set of_joined = mergeql.types_of(joined) -%}
  {%- set checked = [] -%}{%- set counts = [] -%}
  {%- for column in columns if mergeql.folded(column) in types -%}
    {%- set type = types[mergeql.folded(column)] -%}
    {%- set own = adapter.quote(column) -%}
    {%- set changed = mergeql.changed_by(own, type) if mergeql.folded(column) not in keys
        else (none if of_joined[column] == type else 'cast(cast(' ~ own ~ ' as ' ~ type ~ ') as ' ~ of_joined[column] ~ ') is distinct from ' ~ own) -%}
    {%- if changed -%}
      {%- do checked.append(column) -%}
      {%- do counts.append('count(case when ' ~ changed ~ ' then 1 end)') -%}
    {%- endif -%}
  {%- endfor -%}
  {%- if counts -%}
    {%- set found = run_query('select ' ~ counts | join(', ') ~ ' from ' ~ joined).rows[0] -%}
    {%- for column in checked -%}
      {%- if found[loop.index0] -%}
      {{ exceptions.raise_compiler_error("mergeql: the column " ~ column ~ " of " ~ this ~ " is " ~ types[mergeql.folded(column)] ~ ", which does not hold what the batch brings there: run with --full-refresh, or cast it in the model") }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{% endmacro %}

{#- A condition that a state's value is another as a value of a type; none where the database says so itself. -#}
{% macro changed_by(state, type) %}
  {{ return(adapter.dispatch('changed_by', 'mergeql')(state, type)) }}
{% endmacro %}

{% macro default__changed_by(state, type) %}
  {{ return(none) }}
{% endmacro %}

{% macro duckdb__changed_by(state, type) %}
  {%- set value = 'crdt_value_text(' ~ state ~ ')' -%}
  {%- set name = type.upper() -%}
  {%- if name.startswith('DECIMAL') or name in ['TINYINT', 'SMALLINT', 'INTEGER', 'BIGINT', 'HUGEINT', 'UTINYINT', 'USMALLINT', 'UINTEGER', 'UBIGINT', 'UHUGEINT'] -%}
    {#- Digits behind the point that the type does not have; zeros at the end are none. -#}
    {%- set scale = name.split(',')[1].rstrip(')') | trim | int if ',' in name else 0 -%}
    {{ return("length(rtrim(regexp_extract(" ~ value ~ ", '\\.([0-9]*)$', 1), '0')) > " ~ scale) }}
  {%- elif name == 'DATE' -%}
    {{ return("contains(" ~ value ~ ", 'T')") }}
  {%- endif -%}
  {{ return(none) }}
{% endmacro %}

{% macro postgres__changed_by(state, type) %}
  {%- if type.startswith('numeric(') -%}
    {%- set value = 'mergeql_value_like(' ~ state ~ ', cast(null as numeric))' -%}
    {{ return('cast(' ~ value ~ ' as ' ~ type ~ ') <> ' ~ value) }}
  {%- endif -%}
  {{ return(none) }}
{% endmacro %}

{#- A condition that a row of states is not deleted. -#}
{% macro alive() %}
  {{ return("coalesce(crdt_value(" ~ adapter.quote('_mergeql_deleted') ~ "), 'null') in ('null', 'false', '0')") }}
{% endmacro %}

{#- What happens with columns that the kept states don't have, as on_schema_change says: ignore, fail, append_new_columns or sync_all_columns (which
    removes none here: what came once is part of the answer). -#}
{% macro match_columns(target_relation, states, incoming, batch, key, strategies, version_by, default, delete_by) %}
  {%- set known = [] -%}{%- set of_batch = [] -%}
  {%- for column in adapter.get_columns_in_relation(states) -%}{%- do known.append(mergeql.folded(column.name)) -%}{%- endfor -%}
  {%- set added = [] -%}
  {%- for column in adapter.get_columns_in_relation(incoming) -%}{%- do of_batch.append(mergeql.folded(column.name)) -%}{%- endfor -%}
  {%- for column in adapter.get_columns_in_relation(incoming) if mergeql.folded(column.name) not in known -%}
    {#- Postgres calls the type of a state USER-DEFINED here. -#}
    {%- do added.append(api.Column.create(column.name, 'crdt' if target.type == 'postgres' else column.data_type)) -%}
  {%- endfor -%}
  {%- set how = config.get('on_schema_change', 'ignore') -%}
  {%- if '_mergeql_deleted' in of_batch and '_mergeql_deleted' not in known -%}
    {{ exceptions.raise_compiler_error("mergeql: " ~ this ~ " was made without delete_by, and its states do not say what is deleted: run with --full-refresh") }}
  {%- endif -%}
  {%- for column in known if column not in of_batch and how == 'fail' -%}
    {{ exceptions.raise_compiler_error("mergeql: the batch lacks the column " ~ column ~ " of " ~ this ~ " (on_schema_change). Bring it back, or run with --full-refresh") }}
  {%- endfor -%}
  {%- if not added -%}{{ return('') }}{%- endif -%}
  {%- if how == 'ignore' -%}
    {%- do log('mergeql: ' ~ this ~ ' ignores the new columns ' ~ added | map(attribute='name') | join(', ') ~ ' (on_schema_change)', info=True) -%}
  {%- elif how == 'fail' -%}
    {{ exceptions.raise_compiler_error("mergeql: the batch has columns that " ~ this ~ " lacks: " ~ added | map(attribute='name') | join(', ') ~ ". Set on_schema_change to append_new_columns, or run with --full-refresh") }}
  {%- else -%}
    {%- set shown = make_temp_relation(this, '__mergeql_typed').incorporate(type='table') -%}
    {%- call statement('typed') -%}
      {{ mergeql.temporary(shown, mergeql.merge(batch, key, strategies, version_by, default, delete_by)) }}
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
  {#- States of another time would be joined as if they were of all rows. -#}
  {%- set states = adapter.get_relation(database=this.database, schema=this.schema, identifier=this.identifier ~ '__mergeql_state') -%}
  {%- if states is not none -%}{%- do adapter.drop_relation(states) -%}{%- endif -%}
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
