{#- Merging in plain SQL, where the extension is not there: the strategies whose lawful answer plain SQL can give. -#}
{% macro plain_merge(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}, where=none) %}
  {%- set lawful = ['max', 'min', 'or', 'and', 'lww', 'fww'] -%}
  {%- if delete_by or map -%}
    {{ exceptions.raise_compiler_error("mergeql: DELETE BY and MAP need the extension (var mergeql_extension on DuckDB, CREATE EXTENSION mergeql on Postgres)") }}
  {%- endif -%}
  {%- if not execute -%}{{ return('select 1 as mergeql_is_not_lowered_while_parsing') }}{%- endif -%}
  {%- for column, strategy in strategies.items() -%}{%- do mergeql.check_plain(strategy, lawful) -%}{%- endfor -%}
  {%- if default -%}{%- do mergeql.check_plain(default, lawful) -%}{%- endif -%}
  {%- set keys = mergeql.as_list(key) -%}
  {%- set columns = [] -%}
  {%- set has = [] -%}
  {%- set texts = [] -%}
  {%- for item in sources -%}
    {%- set found = adapter.get_columns_in_relation(item) -%}
    {%- set names = found | map(attribute='name') | list -%}
    {%- for column in found if column.is_string() and column.name not in texts -%}{%- do texts.append(column.name) -%}{%- endfor -%}
    {%- do has.append(names) -%}
    {%- for column in names if column not in columns -%}{%- do columns.append(column) -%}{%- endfor -%}
  {%- endfor -%}
  {%- for column in strategies if column not in columns -%}
    {{ exceptions.raise_compiler_error("mergeql: no source has the column `" ~ column ~ "`" ~ mergeql.suggestion(column, columns)) }}
  {%- endfor -%}
  {%- set branches = [] -%}
  {%- for item in sources -%}
    {%- set at = loop.index0 -%}
    {%- set parts = [] -%}
    {%- for column in columns -%}
      {%- do parts.append((adapter.quote(column) if column in has[at] else 'null') ~ ' as ' ~ adapter.quote(column)) -%}
    {%- endfor -%}
    {%- do branches.append('select ' ~ parts | join(', ') ~ ' from ' ~ item) -%}
  {%- endfor -%}
  {%- set versions = mergeql.as_list(version_by) -%}
  {%- set outputs = [] -%}
  {%- for column in keys -%}{%- do outputs.append(adapter.quote(column)) -%}{%- endfor -%}
  {%- for column in columns if column not in keys -%}
    {%- set strategy = strategies.get(column, default or ('lww' if versions else 'max')) -%}
    {#- Text is compared by its bytes, never by a collation. -#}
    {%- set input = adapter.quote(column) ~ (' collate "C"' if column in texts and target.type == 'postgres' else '') -%}
    {%- do outputs.append(mergeql.plain_strategy(strategy, input, versions) ~ ' as ' ~ adapter.quote(column)) -%}
  {%- endfor -%}
  {%- set by = [] -%}
  {%- for column in keys -%}{%- do by.append(adapter.quote(column)) -%}{%- endfor -%}
  {%- set sql = 'select ' ~ outputs | join(', ') ~ ' from (' ~ branches | join(' union all ') ~ ') as r group by ' ~ by | join(', ') -%}
  {{ return(sql if not where else 'select * from (' ~ sql ~ ') as merged where ' ~ where) }}
{% endmacro %}

{% macro check_plain(strategy, lawful) %}
  {%- if strategy not in lawful -%}
    {{ exceptions.raise_compiler_error("mergeql: plain SQL has no lawful answer for the strategy `" ~ strategy ~ "`" ~ mergeql.suggestion(strategy, lawful)
       ~ ". It needs the extension (var mergeql_extension on DuckDB, CREATE EXTENSION mergeql on Postgres); without it there are " ~ lawful | join(', ')) }}
  {%- endif -%}
{% endmacro %}

{#- The nearest of some names: the one that shares most letters at its ends. -#}
{% macro suggestion(word, names) %}
  {%- set best = namespace(name=none, score=0) -%}
  {%- for name in names -%}
    {%- set same = namespace(n=0) -%}
    {%- for letter in name | list -%}{%- if letter in word -%}{%- set same.n = same.n + 1 -%}{%- endif -%}{%- endfor -%}
    {%- set score = 2 * same.n / ((name | length) + (word | length)) -%}
    {%- if score > best.score -%}{%- set best.name = name -%}{%- set best.score = score -%}{%- endif -%}
  {%- endfor -%}
  {{ return(' - did you mean `' ~ best.name ~ '`?' if best.score > 0.6 else '') }}
{% endmacro %}

{#- Values without information count for nothing; of the same version the greatest value wins, whatever the order of the rows. -#}
{% macro plain_strategy(strategy, column, versions) %}
  {%- set simple = {'max': 'max', 'min': 'min', 'or': 'bool_or', 'and': 'bool_and'} -%}
  {%- if strategy in simple -%}{{ return(simple[strategy] ~ '(' ~ column ~ ')') }}{%- endif -%}
  {%- if not versions -%}
    {{ exceptions.raise_compiler_error("mergeql: the strategy `" ~ strategy ~ "` needs version_by") }}
  {%- endif -%}
  {%- set order = [] -%}
  {%- for version in versions -%}
    {%- set name = adapter.quote(version.split(' ')[0]) -%}
    {%- do order.append(name ~ (' desc nulls last' if strategy == 'lww' else ' asc nulls last')) -%}
  {%- endfor -%}
  {{ return('(array_agg(' ~ column ~ ' order by ' ~ order | join(', ') ~ ', ' ~ column ~ ' desc) filter (where ' ~ column ~ ' is not null))[1]') }}
{% endmacro %}
