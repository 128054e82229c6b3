#!/bin/sh
# Prefect takes its secrets from the environment only. They come from files, and never stand in an argument.
set -eu
at=/run/secrets
if [ -r $at/prefect_db_password ]; then
  PREFECT_SERVER_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect:$(cat $at/prefect_db_password)@postgres:5432/prefect"
  redis="redis://:$(cat $at/redis_password)@redis:6379"
  PREFECT_REDIS_MESSAGING_URL="$redis/0" PREFECT_SERVER_DOCKET_URL="$redis/1"
  PREFECT_SERVER_API_AUTH_STRING="$(cat $at/prefect_api_auth)"
  export PREFECT_SERVER_DATABASE_CONNECTION_URL PREFECT_REDIS_MESSAGING_URL PREFECT_SERVER_DOCKET_URL PREFECT_SERVER_API_AUTH_STRING
elif [ -r $at/prefect_api_auth ]; then
  PREFECT_API_AUTH_STRING="$(cat $at/prefect_api_auth)"
  export PREFECT_API_AUTH_STRING
fi
exec "$@"
