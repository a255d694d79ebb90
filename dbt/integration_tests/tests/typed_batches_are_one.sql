{{ config(enabled=var('typed_batch', 1) == 2) }}
{{ differences('select * from ' ~ ref('typed'), 'select * from ' ~ ref('typed_at_once')) }}
