// Orders whose changes are events. Each change and its event are one transaction.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/jackc/pgx/v5"
)

var errPaid = errors.New("is paid")

func addEvent(ctx context.Context, tx pgx.Tx, kind string, order int64, data map[string]any) error {
	// A column list and nothing clever: the rest of the columns have defaults.
	_, err := tx.Exec(ctx, "insert into outbox (type, subject, key, data) values ($1, $2, $3, $4)",
		kind, fmt.Sprint(order), fmt.Sprintf("order-%d", order), data)
	return err
}

func place(ctx context.Context, conn *pgx.Conn, order int64, customer, total string) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, "insert into orders (id, customer, total) values ($1, $2, $3)", order, customer, total)
		if err != nil {
			return err
		}
		return addEvent(ctx, tx, "order.placed", order,
			map[string]any{"id": order, "customer": customer, "total": total})
	})
}

func pay(ctx context.Context, conn *pgx.Conn, order int64) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// The update locks the order until the commit, and comes before the event: so events of one order
		// are in the order of the commits.
		if _, err := tx.Exec(ctx, "update orders set status = 'paid' where id = $1", order); err != nil {
			return err
		}
		return addEvent(ctx, tx, "order.paid", order, map[string]any{"id": order})
	})
}

func cancel(ctx context.Context, conn *pgx.Conn, order int64) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		var before string
		err := tx.QueryRow(ctx, `update orders o set status = 'cancelled' from orders before
			where o.id = $1 and before.id = o.id returning before.status`, order).Scan(&before)
		if err != nil {
			return err
		}
		if err := addEvent(ctx, tx, "order.cancelled", order, map[string]any{"id": order}); err != nil {
			return err
		}
		if before == "paid" {
			// BeginFunc rolls back when its function fails.
			return fmt.Errorf("order %d %w", order, errPaid)
		}
		return nil
	})
}

func run(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if err := place(ctx, conn, 42, "Zoë 🐇", "99.90"); err != nil {
		return err
	}
	if err := pay(ctx, conn, 42); err != nil {
		return err
	}
	err = cancel(ctx, conn, 42)
	if !errors.Is(err, errPaid) {
		return fmt.Errorf("a paid order was cancelled: %w", err)
	}
	// The event went with the change.
	fmt.Println(err)
	return nil
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}
