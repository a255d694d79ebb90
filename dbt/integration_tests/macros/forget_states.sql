{#- Drops the states that are kept of a model. -#}
{% macro forget_states(model) %}
  {%- do adapter.drop_relation(ref(model).incorporate(path={'identifier': model ~ '__mergeql_state'}, type='table')) -%}
  {%- do adapter.commit() -%}
{% endmacro %}
