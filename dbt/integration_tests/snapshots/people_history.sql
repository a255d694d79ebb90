{% snapshot people_history %}
    {{ config(target_schema='snapshots', unique_key='id', strategy='check', check_cols=['mergeql_digest']) }}
    {{ mergeql.snapshot(sources=[ref('crm'), ref('erp')], key='id', version_by='updated_at', strategies={'salary': 'max', 'tags': 'union'}) }}
{% endsnapshot %}
