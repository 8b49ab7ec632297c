"""The table that is exported: a model with other names, another key and more columns, put in place of models.py."""

from __future__ import annotations

import uuid
from datetime import date, datetime
from typing import Any

from sqlalchemy import UUID, Boolean, Date, DateTime, Numeric, Select, Table, Text, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """Base of the tables of the help desk."""


class Ticket(Base):
    """A ticket, in a schema of its own."""

    __tablename__ = "tickets"
    __table_args__ = ({"schema": "Help Desk"},)

    ticket: Mapped[uuid.UUID] = mapped_column(UUID, primary_key=True)
    subject: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column("State", Text)
    due: Mapped[date] = mapped_column(Date)
    urgent: Mapped[bool] = mapped_column(Boolean)
    hours: Mapped[float] = mapped_column(Numeric)
    opened: Mapped[datetime] = mapped_column(DateTime(timezone=True))


CREATED_AT = Ticket.opened
STATUS = Ticket.state
STATUSES = ("open", "closed")
AMOUNT = Ticket.hours


def select_orders() -> Select[Any]:
    """All tickets."""
    return select(*TABLE.columns)


TABLE: Table = inspect(Ticket).local_table
