{{ config(materialized='table') }}
{{ corners_a() }}
