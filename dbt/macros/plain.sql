{#- Merging in plain SQL, where the extension is not there: the strategies whose lawful answer plain SQL can give. -#}
{% macro plain_merge(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}, where=none) %}
  {%- set lawful = ['max', 'min', 'any', 'every', 'bool_or', 'bool_and', 'lww', 'fww'] -%}
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
  {%- set floats = [] -%}
  {%- set types = {} -%}
  {%- set relations = [] -%}
  {%- for item in sources -%}
    {%- if item is string -%}
      {{ exceptions.raise_compiler_error("mergeql: without the extension a source is a relation, not a text: make a model of " ~ item) }}
    {%- endif -%}
    {%- do relations.append(item if item.identifier is defined else item['relation']) -%}
  {%- endfor -%}
  {%- for item in relations -%}
    {%- set found = adapter.get_columns_in_relation(item) -%}
    {%- for name, type in mergeql.types_of(item).items() -%}
      {%- if name not in types -%}
        {%- for other in types if mergeql.folded(other) == mergeql.folded(name) -%}
          {{ exceptions.raise_compiler_error("mergeql: without the extension the columns `" ~ other ~ "` and `" ~ name ~ "` need one spelling in all sources") }}
        {%- endfor -%}
        {%- do types.update({name: type}) -%}
      {%- elif mergeql.kind_of(name, type) != mergeql.kind_of(name, types[name]) -%}
        {{ exceptions.raise_compiler_error("mergeql: the column `" ~ name ~ "` is " ~ types[name] ~ " in one source and " ~ type ~ " in another (" ~ item ~ "): cast one of them") }}
      {%- endif -%}
    {%- endfor -%}
    {#- Their order is the database's own: 30 days are a month, and enums go by their places. -#}
    {%- for column in found if column.data_type.lower().startswith(('interval', 'enum', 'user-defined')) -%}
      {{ exceptions.raise_compiler_error("mergeql: plain SQL has no lawful answer for the column `" ~ column.name ~ "` (" ~ types[column.name] ~ "): it needs the extension") }}
    {%- endfor -%}
    {%- set names = found | map(attribute='name') | list -%}
    {%- for column in found if column.is_string() and column.name not in texts -%}{%- do texts.append(column.name) -%}{%- endfor -%}
    {%- for column in found if column.data_type.lower() in ['real', 'float', 'double', 'double precision', 'float4', 'float8'] and column.name not in floats -%}{%- do floats.append(column.name) -%}{%- endfor -%}
    {%- do has.append(names) -%}
    {%- for column in names if column not in columns -%}{%- do columns.append(column) -%}{%- endfor -%}
  {%- endfor -%}
  {%- for column in strategies if column not in columns -%}
    {{ exceptions.raise_compiler_error("mergeql: no source has the column `" ~ column ~ "`" ~ mergeql.suggestion(column, columns)) }}
  {%- endfor -%}
  {%- set branches = [] -%}
  {%- for item in relations -%}
    {%- set at = loop.index0 -%}
    {%- set parts = [] -%}
    {%- for column in keys if column not in has[at] -%}
      {{ exceptions.raise_compiler_error("mergeql: the key column `" ~ column ~ "` is not in " ~ item ~ mergeql.suggestion(column, has[at])) }}
    {%- endfor -%}
    {%- for column in columns -%}
      {%- do parts.append((adapter.quote(column) if column in has[at] else 'cast(null as ' ~ types[column] ~ ')') ~ ' as ' ~ adapter.quote(column)) -%}
    {%- endfor -%}
    {%- do branches.append('select ' ~ parts | join(', ') ~ ' from ' ~ item) -%}
  {%- endfor -%}
  {%- set versions = mergeql.as_list(version_by) or (['_ts'] if '_ts' in columns and '_ts' not in keys else []) -%}
  {#- Versions in the order of the language: text by its bytes, NaN as little as NULL. -#}
  {%- set ordered = [] -%}
  {%- for version in versions -%}
    {%- set words = version.split() -%}
    {%- set direction = (words[1] if words | length > 1 else 'asc') | lower -%}
    {%- if words | length > 2 or direction not in ['asc', 'desc'] or words[0] not in columns -%}
      {{ exceptions.raise_compiler_error("mergeql: `" ~ version ~ "` of version_by is no column, perhaps with ASC or DESC, of the sources") }}
    {%- endif -%}
    {%- set part = adapter.quote(words[0]) -%}
    {%- set part = "nullif(" ~ part ~ ", cast('NaN' as double precision))" if words[0] in floats else part -%}
    {%- do ordered.append([part ~ (' collate "C"' if words[0] in texts and target.type == 'postgres' else ''), direction == 'asc']) -%}
  {%- endfor -%}
  {%- set outputs = [] -%}
  {%- for column in keys -%}{%- do outputs.append(adapter.quote(column)) -%}{%- endfor -%}
  {%- for column in columns if column not in keys -%}
    {%- set strategy = strategies.get(column, default or ('lww' if versions else 'max')) -%}
    {#- Text is compared by its bytes, never by a collation. -#}
    {%- set input = adapter.quote(column) ~ (' collate "C"' if column in texts and target.type == 'postgres' else '') -%}
    {%- if types[column].endswith('[]') and target.type == 'postgres' -%}
      {{ exceptions.raise_compiler_error("mergeql: plain SQL on Postgres has no lawful answer for the array column `" ~ column ~ "`: it needs the extension") }}
    {%- endif -%}
    {%- do outputs.append(mergeql.plain_strategy(strategy, input, ordered, column in floats) ~ ' as ' ~ adapter.quote(column)) -%}
  {%- endfor -%}
  {%- set by = [] -%}{%- set known = [] -%}{%- set all = [] -%}
  {%- for column in keys -%}
    {%- do by.append(adapter.quote(column)) -%}
    {%- do known.append(adapter.quote(column) ~ ' is not null') -%}
  {%- endfor -%}
  {%- for column in keys + columns if adapter.quote(column) not in all -%}{%- do all.append(adapter.quote(column)) -%}{%- endfor -%}
  {%- set rows = ' from (' ~ branches | join(' union all ') ~ ') as r where ' -%}
  {#- A row without a key is merged with none. -#}
  {%- set sql = 'select ' ~ outputs | join(', ') ~ rows ~ known | join(' and ') ~ ' group by ' ~ by | join(', ')
                ~ ' union all select distinct ' ~ all | join(', ') ~ rows ~ 'not (' ~ known | join(' and ') ~ ')' -%}
  {{ return(sql if not where else 'select * from (' ~ sql ~ ') as merged where ' ~ where) }}
{% endmacro %}

{#- What a type widens within: columns of two kinds are not one column. -#}
{% macro kind_of(column, type) %}
  {%- set name = type.lower().split('(')[0].strip() -%}
  {%- if name in ['tinyint', 'smallint', 'integer', 'bigint', 'hugeint', 'utinyint', 'usmallint', 'uinteger', 'ubigint', 'uhugeint', 'numeric', 'decimal'] -%}
    {{ return('exact number') }}
  {%- elif name in ['real', 'float', 'double', 'double precision'] -%}
    {{ return('float') }}
  {%- elif name in ['varchar', 'text', 'character varying'] -%}
    {{ return('text') }}
  {%- endif -%}
  {{ return(type.lower()) }}
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

{#- Values without information count for nothing, and NaN for less than any other; of the same version the greatest value wins, whatever
    the order of the rows. -#}
{% macro plain_strategy(strategy, column, versions, is_float=false) %}
  {%- set nan = "cast('NaN' as double precision)" -%}
  {%- set simple = {'max': 'max', 'min': 'min', 'any': 'bool_or', 'every': 'bool_and', 'bool_or': 'bool_or', 'bool_and': 'bool_and'} -%}
  {%- if strategy in simple -%}
    {%- set all = simple[strategy] ~ '(' ~ column ~ ')' -%}
    {{ return('coalesce(' ~ simple[strategy] ~ '(nullif(' ~ column ~ ', ' ~ nan ~ ')), ' ~ all ~ ')' if is_float else all) }}
  {%- endif -%}
  {%- if not versions -%}
    {{ exceptions.raise_compiler_error("mergeql: the strategy `" ~ strategy ~ "` needs version_by") }}
  {%- endif -%}
  {%- set order = ['case when ' ~ column ~ ' = ' ~ nan ~ ' then 1 else 0 end'] if is_float else [] -%}
  {%- for part, ascending in versions -%}
    {%- do order.append(part ~ (' desc nulls last' if (strategy == 'lww') == ascending else ' asc nulls last')) -%}
  {%- endfor -%}
  {{ return('(array_agg(' ~ column ~ ' order by ' ~ order | join(', ') ~ ', ' ~ column ~ ' desc) filter (where ' ~ column ~ ' is not null))[1]') }}
{% endmacro %}
