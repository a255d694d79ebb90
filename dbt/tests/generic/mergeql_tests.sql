{#- The model is what its input gives in any order and repeated: rebuilt from shuffled, doubled rows it has the same rows. -#}
{% test converges(model, sources, key, strategies={}, version_by=none, default=none, delete_by=none, columns=none) %}
  {%- set shuffled = [] -%}
  {%- for item in sources | reverse -%}
    {%- do shuffled.append('(select * from (select * from ' ~ item ~ ' union all select * from ' ~ item ~ ') as doubled order by random()) AS ' ~ mergeql.name(item.identifier)) -%}
  {%- endfor -%}
  {%- set names = [] -%}
  {%- if execute -%}
    {%- for column in columns or (adapter.get_columns_in_relation(model) | map(attribute='name') if model is not string else []) -%}{%- do names.append(adapter.quote(column)) -%}{%- endfor -%}
  {%- endif -%}
  {%- set list = names | join(', ') if names else '*' -%}
  {%- set condition = ' where ' ~ config.get('where') if config.get('where') else '' -%}
  with rebuilt as (select {{ list }} from ({{ mergeql.statement(mergeql.merge_text(shuffled, key, strategies, version_by, default, delete_by)) }}) as r{{ condition }}),
  model as (select {{ list }} from {{ model }})
  (select 'only in the model' as difference, m.* from (select * from model except all select * from rebuilt) as m)
  union all
  (select 'only when rebuilt' as difference, r.* from (select * from rebuilt except all select * from model) as r)
{% endtest %}

{#- No cell of the merge has contributing values that differ. -#}
{% test no_conflicts(model, key, strategies={}, version_by=none, default=none, columns=none, sources=none) %}
  {#- With `where` the model is a query. -#}
  {%- set own = '(select * from ' ~ model ~ ') AS "model"' if model is string else model -%}
  {%- set found = mergeql.conflicts(sources or [own], key, strategies, version_by, default) -%}
  select * from ({{ found }}) as conflicts
  {%- if columns %} where column_name in ({% for column in columns %}{{ mergeql.literal(column) }}{{ ', ' if not loop.last }}{% endfor %}){% endif %}
{% endtest %}

{#- Every strategy of a model with kept states is known and lawful: it is in the catalogue, whose laws are tested. -#}
{% test lawful(model, strategies) %}
  {%- set names = [] -%}
  {%- for strategy in strategies.values() -%}{%- do names.append("select " ~ mergeql.literal(strategy.split('(')[0].split()[0] | lower) ~ " as name") -%}{%- endfor -%}
  select used.name from ({{ names | join(' union all ') if names else 'select null as name' }}) as used
  where used.name is not null and not exists (
    select 1 from mergeql_strategies() as known
    where (known.name = used.name or concat(', ', known.aliases, ', ') like concat('%, ', used.name, ', %')) and known.laws like '%commutative%'
  )
{% endtest %}
