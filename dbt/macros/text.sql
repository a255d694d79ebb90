{#- A text as a SQL literal. -#}
{% macro literal(text) %}
  {{ return("'" ~ (text | string | replace("'", "''")) ~ "'") }}
{% endmacro %}

{#- One value or a list, as a list. -#}
{% macro as_list(value) %}
  {{ return([] if value is none else ([value] if value is string else (value | list))) }}
{% endmacro %}

{#- A name in MergeQL: quoted, so that its letters stay as they are. -#}
{% macro name(text) %}
  {{ return('"' ~ (text | replace('"', '""')) ~ '"') }}
{% endmacro %}

{#- A source of a statement: a relation under its own name, a query in parentheses, or what is written. -#}
{% macro source_text(item) %}
  {%- if item is string -%}
    {{ return(item) }}
  {%- endif -%}
  {%- set relation = item if item.identifier is defined else item['relation'] -%}
  {%- set name = mergeql.name(item.identifier if item.identifier is defined else item['name']) -%}
  {%- set text = relation.include(database=(target.type != 'postgres')) | string -%}
  {#- With --empty or --sample it is a query. -#}
  {{ return(('(select * from ' ~ text ~ ')' if text.startswith('(') else text) ~ ' AS ' ~ name) }}
{% endmacro %}

{#- The text of a MERGE statement from the arguments of mergeql.merge(). -#}
{% macro merge_text(sources, key, strategies={}, version_by=none, default=none, delete_by=none, map={}, where=none, returning=none, options={}) %}
  {%- set parts = [] -%}
  {%- for item in sources -%}{%- do parts.append(mergeql.source_text(item)) -%}{%- endfor -%}
  {%- set keys = [] -%}
  {%- for column in mergeql.as_list(key) -%}{%- do keys.append(mergeql.name(column)) -%}{%- endfor -%}
  {%- set rules = [] -%}
  {%- for column, strategy in strategies.items() -%}{%- do rules.append(mergeql.name(column) ~ ' = ' ~ strategy) -%}{%- endfor -%}
  {%- if default -%}{%- do rules.append('* = ' ~ default) -%}{%- endif -%}
  {%- set versions = [] -%}
  {%- for column in mergeql.as_list(version_by) -%}
    {%- set words = column.split(' ') -%}
    {%- do versions.append('ROW' if words[0] == 'ROW' else mergeql.name(words[0]) ~ (' ' ~ words[1:] | join(' ') if words | length > 1 else '')) -%}
  {%- endfor -%}
  {%- set renames = [] -%}
  {%- for old, new in map.items() -%}{%- do renames.append(mergeql.name(old) ~ ' -> ' ~ mergeql.name(new)) -%}{%- endfor -%}
  {%- set settings = [] -%}
  {%- for option, value in options.items() -%}
    {%- do settings.append(option ~ ' = ' ~ (mergeql.literal(value) if value is string else (value | string | lower))) -%}
  {%- endfor -%}
  {%- set text = 'MERGE ' ~ parts | join(', ') ~ '\nON (' ~ keys | join(', ') ~ ')' -%}
  {%- if rules %}{% set text = text ~ '\nSTRATEGY ' ~ rules | join(', ') %}{% endif -%}
  {%- if versions %}{% set text = text ~ '\nVERSION BY ' ~ versions | join(', ') %}{% endif -%}
  {%- if delete_by %}{% set text = text ~ '\nDELETE BY ' ~ mergeql.name(delete_by) %}{% endif -%}
  {%- if renames %}{% set text = text ~ '\nMAP ' ~ renames | join(', ') %}{% endif -%}
  {%- if where %}{% set text = text ~ '\nWHERE ' ~ where %}{% endif -%}
  {%- if returning %}{% set text = text ~ '\nRETURNING ' ~ returning %}{% endif -%}
  {%- if settings %}{% set text = text ~ '\nWITH (' ~ settings | join(', ') ~ ')' %}{% endif -%}
  {{ return(text) }}
{% endmacro %}
