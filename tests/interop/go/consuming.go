package main

// What the programs of docs/consuming.md need, so that the module has it.
import (
	_ "github.com/jackc/pgx/v5"
	_ "github.com/rabbitmq/amqp091-go"
)
