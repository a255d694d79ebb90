{% materialization incremental, adapter='duckdb', supported_languages=['sql', 'python'] %}{{ return(mergeql.materialize_incremental()) }}{% endmaterialization %}
{% materialization incremental, default %}{{ return(mergeql.materialize_incremental()) }}{% endmaterialization %}
