{#- people_plain is built with `mergeql_plain_sql` or without; either way it has these rows. -#}
{% if var('mergeql_plain_sql', false) %}
select 1 as nothing where 1 = 0
{% else %}
with merged as ({{ mergeql.merge(sources=[ref('crm'), ref('erp')], key='id', version_by='updated_at', strategies={'salary': 'max', 'updated_at': 'max'}) }})
(select * from merged except select * from {{ ref('people_plain') }})
union all
(select * from {{ ref('people_plain') }} except select * from merged)
{% endif %}
