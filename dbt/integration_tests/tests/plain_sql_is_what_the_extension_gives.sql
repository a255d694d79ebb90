{#- people_plain is built with `mergeql_plain_sql` or without; either way it has these rows. -#}
{%- set strategies = {'salary': 'max', 'updated_at': 'max'} -%}
{% if var('mergeql_plain_sql', false) %}
    select 1 as no_row
    where 1 = 0
{% else %}
    {%- set merged = mergeql.merge(sources=[ref('crm'), ref('erp')], key='id', version_by='updated_at', strategies=strategies) -%}
    {{ differences('select * from (' ~ merged ~ ') as m', 'select * from ' ~ ref('people_plain')) }}
{% endif %}
