{#- The model is built in plain SQL first; see the tests of the package. -#}
{{ config(enabled=var('corners', false)) }}
{%- set sources = [ref('corners_a'), ref('corners_b'), ref('corners_c')] -%}
{%- set merged = mergeql.merge(sources=sources, key='id', strategies={'low': 'min'}, version_by=['_ts DESC']) -%}
{{ differences('select * from (' ~ merged ~ ') as m', 'select * from ' ~ ref('corners_oldest')) }}
