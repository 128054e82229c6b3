#!/bin/sh
# Run once by the image, on an empty data folder: the database of relight's leases, and the only role that may use it.
set -eu
secret=${LEASE_PASSWORD_FILE:-/run/secrets/lease_password}
psql --quiet --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<SQL
\set password \`cat $secret\`
CREATE ROLE relight LOGIN PASSWORD :'password';
CREATE DATABASE relight OWNER relight;
SQL
